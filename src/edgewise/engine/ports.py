"""The ports of the engine: small enough to fake in a test. Everything with a socket, a clock or torch is behind one.

Frames, not objects, cross a ``Cohort``, also within one process: one path, tested everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from edgewise.core.events import AnyEvent, Evaluated
from edgewise.core.frame import Invite
from edgewise.core.keys import Key
from edgewise.core.memory import Memory
from edgewise.core.safe_repr import outline
from edgewise.core.stage import Aggregate
from edgewise.core.training import DeviceId
from edgewise.core.vector import Buffer, Vector
from edgewise.engine.device_state import Kept
from edgewise.privacy.ledger import LedgerEntry
from edgewise.secagg.secrets import Hidden
from edgewise.strategies.base import State


@dataclass(frozen=True, slots=True)
class Arrived:
    """A frame from a device, ``at_s`` on the cohort's clock. The timings are telemetry of simulation drivers."""

    device: DeviceId
    frame: bytes = field(repr=False)
    at_s: float
    train_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Absent:
    """The driver knows that a device will not answer: it dropped out, crashed, or was cut off."""

    device: DeviceId
    code: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A frame that a server sent in a round before it stopped.

    Attributes:
        at_s: when it was sent. awaited: the device's answer is still waited for.
    """

    device: DeviceId
    frame: bytes = field(repr=False)
    at_s: float
    awaited: bool


class Clock(Protocol):
    """Seconds on some monotonic scale; virtual in simulation."""

    def now_s(self) -> float:
        """Now."""
        ...


class Cohort(Clock, Protocol):
    """A synchronous mailbox to the devices."""

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        """Make these blobs, and no others, available to all devices; returns their SHA-256 digests in order. A blob
        that was available already need not be moved again."""
        ...

    def send(self, to: DeviceId, frame: bytes) -> None:
        """Post one frame; returns at once."""
        ...

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """Go on with a round that was cut off at ``at_s``, after ``publish``: bring all that was ``sent`` in it back to
        the devices, and send again what is still awaited."""
        ...

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """The next arrival within ``timeout_s``, or None when that time has passed.

        An arrival counts as delivered with the next call. One that was not, since the server stopped, may come again.
        """
        ...

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """Whatever has not arrived will not be waited for; drop it. With the devices ``keep`` the round goes on."""
        ...


@dataclass(frozen=True, slots=True)
class Trust:
    """Who is who, known before a run and not from the other side of the wire.

    Attributes:
        registry: device -> its enrolled Ed25519 key; None for a stranger.
        identity: device -> its own secret Ed25519 key; a driver knows that of its own devices only.
        leader, helper: public HPKE keys of the two servers; None where there is one.
        roster: all devices of the run, sorted; cohorts that devices verify are drawn from it.
    """

    registry: Callable[[DeviceId], bytes | None] = field(repr=False)
    identity: Callable[[DeviceId], bytes] = field(repr=False)
    leader: bytes | None = None
    helper: bytes | None = None
    roster: tuple[DeviceId, ...] = ()


class Helper(Protocol):
    """The second server, which holds one share of every contribution (``secagg.two_server``)."""

    def begin(self, invite: Invite) -> None:
        """A new round: forget the reports of the last one.

        The helper works out the smallest batch and the session's id from its own plan and from the invitation as the
        devices got it; neither is taken from the leader. It refuses an invitation that a device would refuse, one of an
        earlier round, and one of a round whose batch was opened, since two batches that differ by one report would show
        it. Then ``admit`` and ``open`` refuse with the code.
        """
        ...

    def admit(self, ticket: bytes) -> str | None:
        """Take a report into the batch, by its ticket (``two_server.dump``); the code of a refusal, None where it is
        taken."""
        ...

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """The helper's share of the batch's sum. Raises DecodeError where it refuses."""
        ...


@dataclass(frozen=True, slots=True)
class Began:
    """The first record of a round's log: what the server draws once for the round and must have again.

    Attributes:
        at_s: on the cohort's clock. attempt: the round's name in the privacy ledger.
        nonce: tells the round's secure aggregation from all others; devices are sent it. None where there is none.
        dealing: decides the groups of hidden sums. invited: the cohort.
    """

    at_s: float
    attempt: str
    nonce: bytes | None = field(repr=False)
    dealing: Key = field(repr=False)
    invited: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Expired:
    """A deadline passed: that of the round, or of a step of its secure aggregation."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Pinned:
    """The sum of a group will be that of ``survivors``. It is written before devices hear of the list."""

    group: int
    survivors: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """The server goes on after a stop; all deadlines are ``by_s`` later."""

    by_s: float


Record = Began | Arrived | Absent | Expired | Pinned | Resumed


class Journal(Protocol):
    """The log of one round: what happened, in order, surviving a crash. The round's state is a fold of it."""

    def replay(self) -> Iterable[Record]:
        """The records written so far, one at a time; a torn last record is dropped. Read all of them before the next
        ``append``."""
        ...

    def append(self, record: Record) -> None:
        """Write one record before it takes effect."""
        ...

    def sync(self) -> None:
        """Return when all records survive a power cut."""
        ...


@dataclass(frozen=True, slots=True)
class DeltaBlob:
    """One round's compressed step of the model that devices hold.

    Attributes:
        round: the round whose model it leads to, from the one before.
        digest: of ``blob``. base: digest of the model it starts from.
        blob: a ``frame.Delta`` as it travels.
    """

    round: int
    digest: str
    base: str
    blob: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Downlink:
    """What devices hold of the model (``engine.broadcast``).

    Attributes:
        round: the round that ``shadow`` is for: the next one to play.
        shadow: float32[d], what devices train from in that round.
        model: digest of ``shadow``.
        ring: the latest deltas, of consecutive rounds up to ``round``; together smaller than a snapshot, but at least
            the newest. Empty before the first.
        anchor: float32[d], the model that the ring starts from.
    """

    round: int
    shadow: Vector = field(repr=False)
    model: str
    ring: tuple[DeltaBlob, ...]
    anchor: Vector = field(repr=False)

    @property
    def anchor_round(self) -> int:
        """The round whose model ``anchor`` was."""
        return self.round - len(self.ring)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run between two rounds.

    Attributes:
        next_round: the round to play next.
        state: strategy state; ``state.params`` is the current model.
        unmet: rounds abandoned in a row.
        memory: what the server keeps for the codec between rounds, arrays by name: ``Pipeline.start_memory``, and the
            positions of the last release (``engine.broadcast.SUPPORT``).
        down: what devices hold of the model; None where they download the model itself.
        epsilon: spent up to here; 0 without differential privacy.
    """

    next_round: int
    state: State
    unmet: int = 0
    memory: Memory = field(default_factory=Memory)
    down: Downlink | None = None
    epsilon: float = 0.0

    __repr__ = outline


class Standing(NamedTuple):
    """What the server knows of a device.

    Attributes:
        accepted: last round in which its contribution entered a model; None: there is none.
        held: round whose model it certainly has; None: not known, or too old for the deltas.
    """

    accepted: int | None = None
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What a round changes in the standing of devices; of all others nothing is written.

    Attributes:
        accepted: their contributions entered the round's model.
        had: they sent an update of the round's model, so they have it.
        stale: they have no model that a delta starts from.
    """

    accepted: Sequence[DeviceId] = ()
    had: Sequence[DeviceId] = ()
    stale: Sequence[DeviceId] = ()


class Evaluator(Protocol):
    """Measures models on text that no device trains on."""

    def evaluate(self, model: str, round: int, params: Vector) -> Evaluated:
        """Held-out losses of ``params`` (float32[d]), the model of this name after a round (-1: the base)."""
        ...


class DeviceStore(Protocol):
    """Where devices keep their states between two frames: codec memory, the last round answered, and the device's side
    of a secure aggregation under way."""

    def load(self, device: DeviceId) -> Kept | None:
        """The state saved last; None for a device that has saved none. Raises StoreError for a damaged one."""
        ...

    def save(self, device: DeviceId, state: Kept) -> None:
        """Replace a device's state, whole or not at all. Call it before the frame leaves that goes with the state.

        Raises StoreError where the state cannot be kept: the frame must not leave then.
        """
        ...


class Shelf(Protocol):
    """A place for one value of a run: how far its beacon is (``engine.beacon_server``)."""

    def load(self) -> bytes | None:
        """What was saved last; None before that."""
        ...

    def save(self, raw: bytes) -> None:
        """Replace it; durable when this returns."""
        ...


class Store(Protocol):
    """Durable state of one run. A commit is one transaction: all of it is there after a crash, or none."""

    def load(self) -> Checkpoint | None:
        """The last committed checkpoint; None before the first commit."""
        ...

    def journal(self, round: int) -> Journal:
        """The round's write-ahead log."""
        ...

    def standing(self, devices: Sequence[DeviceId]) -> Mapping[DeviceId, Standing]:
        """Of each of these devices, in their order."""
        ...

    def commit(
        self,
        checkpoint: Checkpoint,
        events: Sequence[AnyEvent],
        change: Change = Change(),
        total: Aggregate | None = None,
    ) -> None:
        """Save a checkpoint with the events that led to it. ``change``, ``total``: by the round before ``next_round``;
        ``total`` is what it released, None where it released nothing."""
        ...

    @property
    def beacon(self) -> Shelf:
        """Where the run's beacon is kept."""
        ...

    def charge(self, charge: LedgerEntry) -> None:
        """Write a charge to the privacy ledger, in a transaction of its own, before what it is for is opened. The same
        round and attempt are written once."""
        ...

    def charges(self) -> tuple[LedgerEntry, ...]:
        """The ledger's rows in order."""
        ...

    def evaluated(self, model: str, round: int) -> bool:
        """Whether this evaluation is already stored."""
        ...

    def append(self, event: AnyEvent) -> None:
        """Store one event (evaluations with their per-device rows) in a transaction of its own."""
        ...

    def evaluations(self) -> Sequence[Evaluated]:
        """The stored evaluations of all models."""
        ...

    def keep(self, name: str, x: Vector, note: int = 0) -> None:
        """Keep a vector under a name, durably, until another takes its place; ``note`` is a number of the caller's."""
        ...

    def kept(self, name: str) -> tuple[Vector, int] | None:
        """The vector and the number kept under a name."""
        ...
