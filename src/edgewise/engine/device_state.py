"""The states of a device (``engine.device``), and the two parts in which a ``DeviceStore`` keeps them.

memory     named arrays: codec memory after the last contributions, and of which rounds it is
session    bytes: the last round answered, and the device's side of a secure aggregation under way, secrets and all

state == resumed(idle_of(state.device, memory_of(state)), session_of(state))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from edgewise.core import keys
from edgewise.core.frame import Invite
from edgewise.core.memory import Memory, flat, tree
from edgewise.core.pipeline import Pipeline
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array, Vector
from edgewise.plan.plan import Plan
from edgewise.secagg import client


@dataclass(frozen=True, slots=True)
class After:
    """Codec memory after the device's contribution to ``round``; None: before its first one."""

    round: int | None
    memory: Memory = field(repr=False)


class Lot(msgspec.Struct, frozen=True):
    """What a device gave to the run's beacon. ``value``: 32 secret bytes. ``fixed``: digest of the one list that it
    revealed them for; None before."""

    value: bytes
    fixed: bytes | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class Idle:
    """Between rounds.

    Attributes:
        committed: the memory after the last contribution that the server is known to have used.
        pending: the memory that holds if the server used the newest contribution; None: there is no newer one.
        answered: the last round this device contributed to, where an update may leave once only
            (``engine.admission.refused``). None: there is no such round.
        lot: its part in the run's beacon; None where it has none.
    """

    device: DeviceId
    committed: After
    pending: After | None = None
    answered: int | None = None
    lot: Lot | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """Waiting for the trainer. ``base``: the memory that the contribution will start from. ``given``: what the
    strategy's server half gives it beside the model. ``support`` as in ``Turn``, ``answered`` and ``lot`` as in
    ``Idle``. ``cohort``: of the round, where the device verifies it. No store keeps this state: a device that is
    restarted here was never invited."""

    device: DeviceId
    invite: Invite
    base: After
    secrets: keys.Secrets = field(repr=False)
    support: Array | None = field(default=None, repr=False)
    answered: int | None = None
    given: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    lot: Lot | None = field(default=None, repr=False)
    cohort: frozenset[DeviceId] | None = field(default=None, repr=False)

    @property
    def idle(self) -> Idle:
        """The device without what was under way."""
        return Idle(self.device, self.base, answered=self.answered, lot=self.lot)


class Unsent(msgspec.Struct, frozen=True):
    """An update that is encoded when the device's group and its rung are known. ``invite``: a frame. ``x``: float32[d],
    little-endian. ``private``: ``Secrets.encoding``. ``best``: number of the rung that the device asked for."""

    invite: bytes
    x: bytes
    private: bytes
    head: dict[str, float]
    count: float
    best: int

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class InSecAgg:
    """In the round's secure aggregation.

    Attributes:
        client: state of its machine. idle: what holds after it.
        heard, said: digest of the server's frame that was answered last, and the answer. After a stop the server, or
            the device, may not know that the answer came: the same frame gets the same answer again.
        rung: of the device's group, None where the codec is fixed. unsent: until the group is known.
        cohort: of the round, where the device verifies it: it exchanges secrets with nobody else.
    """

    round: int
    client: client.State = field(repr=False)
    idle: Idle = field(repr=False)
    heard: str
    said: bytes = field(repr=False)
    rung: int | None = None
    unsent: Unsent | None = None
    cohort: frozenset[DeviceId] | None = field(default=None, repr=False)

    @property
    def device(self) -> DeviceId:
        """Whose state it is."""
        return self.idle.device


State = Idle | Training | InSecAgg
Kept = Idle | InSecAgg  # what stores keep


def join(plan: Plan, device: DeviceId) -> Idle:
    """The state of a device that has never taken part."""
    return Idle(device, After(None, plan.each(Pipeline.init)))


def remembers(plan: Plan) -> bool:
    """Whether devices keep memory between rounds, for the codec or for the strategy."""
    return bool(plan.strategy.client.memory) or any(pipe.encoded.memory for pipe in (*plan.pipelines, *plan.ways))


def settled(plan: Plan, state: Idle, accepted: int | None) -> Idle | None:
    """The device with the one codec memory that holds when the server last used its contribution to round ``accepted``
    (None: to no round yet); None where the device has the memory of another round only."""
    if state.pending is not None and accepted == state.pending.round:
        return replace(state, committed=state.pending, pending=None)
    if accepted == state.committed.round or not remembers(plan):
        return replace(state, committed=After(accepted, state.committed.memory), pending=None)
    return None


def recalled(state: Kept, charged: int | None) -> Kept:
    """The device with what its owner's ledger remembers beside its store. ``charged``: the last round of the run for
    which an update left, by the ledger; None: there is none.

    A store that is older than the ledger (deleted, put back, or not yet replaced when the process died) has forgotten
    an update. Its device counts as having answered that round, and is in no session of it.
    """
    idle = state if isinstance(state, Idle) else state.idle
    if charged is None or (idle.answered is not None and idle.answered >= charged):
        return state
    idle = replace(idle, answered=charged)
    return replace(state, idle=idle) if isinstance(state, InSecAgg) and state.round > charged else idle


class _Session(msgspec.Struct, frozen=True, omit_defaults=True):
    round: int
    client: bytes
    rung: int | None
    unsent: Unsent | None
    heard: str
    said: bytes
    cohort: frozenset[str] | None = None

    __repr__ = outline


class _Kept(msgspec.Struct, frozen=True, omit_defaults=True):
    answered: int | None
    session: _Session | None
    lot: Lot | None = None

    __repr__ = outline


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Kept)


def memory_of(state: Kept) -> dict[str, Array]:
    """Codec memory as named arrays, for a file: ``committed/PATH`` and ``pending/PATH`` (``core.memory.flat``), and
    ``committed_round`` and ``pending_round``, int64[0] where there is no such round, else int64[1]."""
    idle = state if isinstance(state, Idle) else state.idle
    arrays, memory = dict[str, Array](), Memory()
    for name, held in (("committed", idle.committed), ("pending", idle.pending)):
        if held is not None:
            rounds = [] if held.round is None else [held.round]
            arrays[f"{name}_round"] = np.array(rounds, np.int64)
            memory = memory.put(name, None, held.memory)
    return {**arrays, **flat(memory)}


def session_of(state: Kept) -> bytes:
    """The rest of a state. It holds the session's secret keys: a file of it is for its owner only."""
    idle = state if isinstance(state, Idle) else state.idle
    session = None
    if isinstance(state, InSecAgg):
        saved = client.save(state.client)
        session = _Session(state.round, saved, state.rung, state.unsent, state.heard, state.said, state.cohort)
    return _encoder.encode(_Kept(idle.answered, session, idle.lot))


def idle_of(device: DeviceId, memory: Mapping[str, Array]) -> Idle:
    """The device with this memory, and nothing else. Raises KeyError for arrays that ``memory_of`` does not make."""
    committed = _after(memory, "committed")
    if committed is None:
        raise KeyError("committed_round")
    return Idle(device, committed, _after(memory, "pending"))


def resumed(idle: Idle, session: bytes) -> Kept:
    """The device with the rest of its state. Raises msgspec.DecodeError for bytes that ``session_of`` does not make."""
    kept = _decoder.decode(session)
    idle = replace(idle, answered=kept.answered, lot=kept.lot)
    if kept.session is None:
        return idle
    s = kept.session
    return InSecAgg(s.round, client.restore(s.client), idle, s.heard, s.said, s.rung, s.unsent, s.cohort)


def _after(arrays: Mapping[str, Array], name: str) -> After | None:
    if (rounds := arrays.get(f"{name}_round")) is None:
        return None
    return After(int(rounds[0]) if rounds.size else None, tree(arrays).child(name))
