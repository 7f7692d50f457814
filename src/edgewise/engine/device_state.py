"""States of a device (``engine.device``), and the two parts in which a ``DeviceStore`` keeps them.

memory     named arrays: codec memory after the last contributions, and the rounds that it belongs to
session    bytes: the last round answered, and the device's side of a secure aggregation under way, with its secrets

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
from edgewise.plan.personal import keeps_private
from edgewise.plan.plan import Plan
from edgewise.secagg import client

PRIVATE = "private"  # name of the child of a device's memory that holds its private vectors


@dataclass(frozen=True, slots=True)
class After:
    """Codec memory after the device's contribution to ``round``. With None: before its first one."""

    round: int | None
    memory: Memory = field(repr=False)


class Lot(msgspec.Struct, frozen=True):
    """Device's random value for the run's beacon. ``value``: 32 bytes, secret until revealed. ``fixed``: digest of the
    one list that it revealed them for, None before."""

    value: bytes
    fixed: bytes | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class Idle:
    """State of a device between rounds.

    Attributes:
        committed: the memory after the last contribution that the server is known to have used.
        pending: the memory that applies if the server used the newest contribution. None: there is no newer one.
        answered: the last round this device contributed to, where that decides about invitations
            (``engine.admission.counts_rounds``). None: there is no such round.
        lot: its part in the run's beacon. None where it has none.
    """

    device: DeviceId
    committed: After
    pending: After | None = None
    answered: int | None = None
    lot: Lot | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """State of a device that waits for its trainer. No store keeps it: a device that restarts here was never invited.

    Attributes:
        base: the memory that the contribution will start from. given: vectors of the strategy's server half, sent
        beside the model. support: as in ``Turn``. answered, lot: as in ``Idle``. cohort: the round's cohort, where the
        device verifies it. start: the model that training starts from, where the strategy keeps the trained one.
        dead: the coordinates that are pruned (``plan.pruning.pruned_positions``).
    """

    device: DeviceId
    invite: Invite
    base: After
    secrets: keys.Secrets = field(repr=False)
    support: Array | None = field(default=None, repr=False)
    answered: int | None = None
    given: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    lot: Lot | None = field(default=None, repr=False)
    cohort: frozenset[DeviceId] | None = field(default=None, repr=False)
    start: Vector | None = field(default=None, repr=False)
    dead: Array | None = field(default=None, repr=False)

    @property
    def idle(self) -> Idle:
        """State of the device without the training under way."""
        return Idle(self.device, self.base, answered=self.answered, lot=self.lot)


class Unsent(msgspec.Struct, frozen=True):
    """Update that waits to be encoded until the device's group, and so its rung, is known.

    Attributes: invite: a frame. x: float32[d], little-endian. private: ``Secrets.encoding``. best: number of the rung
    that the device asked for.
    """

    invite: bytes
    x: bytes
    private: bytes
    head: dict[str, float]
    count: float
    best: int

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class InSecAgg:
    """State of a device in the round's secure aggregation.

    Attributes:
        client: state of its machine. idle: state of the device after the session.
        heard, said: digest of the server's frame that was answered last, and the answer. After a stop the server, or
            the device, may not know that the answer arrived. So the same frame gets the same answer again.
        rung: of the device's group, None where the codec is fixed. unsent: the update, until the group is known.
        cohort: the round's cohort, where the device verifies it. The device exchanges secrets with no other device.
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
        """Id of the device."""
        return self.idle.device


State = Idle | Training | InSecAgg
Kept = Idle | InSecAgg  # the states that stores keep


def join(plan: Plan, device: DeviceId) -> Idle:
    """Make the state of a device that has never taken part."""
    return Idle(device, After(None, plan.initial_memory(Pipeline.init)))


def remembers(plan: Plan) -> bool:
    """Tell whether devices keep memory between rounds: for the codec, for the strategy, or a private part."""
    if keeps_private(plan) or plan.strategy.client.memory:
        return True
    return any(pipe.encoded.memory for pipe in (*plan.pipelines, *plan.rung_pipelines))


def settled(plan: Plan, state: Idle, accepted: int | None) -> Idle | None:
    """Commit the codec memory that applies when the server last used the device's contribution to ``accepted``.

    Args: accepted: a round. None: the server has used no contribution yet.
    Returns: the device, or None where it has the memory of other rounds only.
    """
    if state.pending is not None and accepted == state.pending.round:
        return replace(state, committed=state.pending, pending=None)
    if accepted == state.committed.round or not remembers(plan):
        return replace(state, committed=After(accepted, state.committed.memory), pending=None)
    return None


def private_part(state: Kept) -> dict[str, Vector]:
    """Return the newest private vectors of a device (``core.training.Update.personal``). Empty before the first."""
    idle = state if isinstance(state, Idle) else state.idle
    return dict((idle.pending or idle.committed).memory.child(PRIVATE).arrays)


def recalled(state: Kept, charged: int | None) -> Kept:
    """Merge the owner's ledger into a device's stored state.

    A store that is older than the ledger (deleted, put back, or not yet replaced when the process died) has forgotten
    an update. Its device counts as having answered that round, and is in no session of it.
    Args: charged: the last round of the run for which an update left, by the ledger. None: there is none.
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
    """Flatten codec memory to named arrays, for a file.

    The names are ``committed/PATH`` and ``pending/PATH`` (``core.memory.flat``), and ``committed_round`` and
    ``pending_round``, int64[0] where there is no such round, otherwise int64[1].
    """
    idle = state if isinstance(state, Idle) else state.idle
    arrays, memory = dict[str, Array](), Memory()
    for name, held in (("committed", idle.committed), ("pending", idle.pending)):
        if held is not None:
            rounds = [] if held.round is None else [held.round]
            arrays[f"{name}_round"] = np.array(rounds, np.int64)
            memory = memory.put(name, None, held.memory)
    return {**arrays, **flat(memory)}


def session_of(state: Kept) -> bytes:
    """Serialise the rest of a state. It holds the session's secret keys, so only the owner may read a file of it."""
    idle = state if isinstance(state, Idle) else state.idle
    session = None
    if isinstance(state, InSecAgg):
        saved = client.save(state.client)
        session = _Session(state.round, saved, state.rung, state.unsent, state.heard, state.said, state.cohort)
    return _encoder.encode(_Kept(idle.answered, session, idle.lot))


def idle_of(device: DeviceId, memory: Mapping[str, Array]) -> Idle:
    """Make an idle device with this memory only. Raises KeyError for arrays that ``memory_of`` does not make."""
    committed = _after_from_arrays(memory, "committed")
    if committed is None:
        raise KeyError("committed_round")
    return Idle(device, committed, _after_from_arrays(memory, "pending"))


def resumed(idle: Idle, session: bytes) -> Kept:
    """Restore the rest of a device's state. Raises msgspec.DecodeError for bytes that ``session_of`` does not make."""
    state = _decoder.decode(session)
    idle = replace(idle, answered=state.answered, lot=state.lot)
    if state.session is None:
        return idle
    s = state.session
    return InSecAgg(s.round, client.restore(s.client), idle, s.heard, s.said, s.rung, s.unsent, s.cohort)


def _after_from_arrays(arrays: Mapping[str, Array], name: str) -> After | None:
    """Read a pending or committed memory and its round from stored arrays."""
    if (rounds := arrays.get(f"{name}_round")) is None:
        return None
    return After(int(rounds[0]) if rounds.size else None, tree(arrays).child(name))
