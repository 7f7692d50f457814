"""Ports of the engine: protocols for everything with a socket, a clock, a disk or torch, small enough to fake in tests.

Frames, not objects, cross a ``Cohort``, even within one process. So there is one path, which all tests use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgewise.core.events import AnyEvent, Evaluated, Redistilled
from edgewise.core.frame import Invite
from edgewise.core.keys import Key
from edgewise.core.stage import Aggregate
from edgewise.core.training import DeviceId
from edgewise.core.vector import Buffer, Vector
from edgewise.engine.checkpoint import Change, Checkpoint, Standing
from edgewise.engine.device_state import Kept
from edgewise.privacy.ledger import LedgerEntry
from edgewise.secagg.secrets import Hidden


@dataclass(frozen=True, slots=True)
class Arrived:
    """Frame from a device, at ``at_s`` on the cohort's clock. The timings are telemetry of simulation drivers."""

    device: DeviceId
    frame: bytes | memoryview = field(repr=False)
    at_s: float
    train_s: float = 0.0
    encode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Absent:
    """Notice of the driver that a device will not answer: it dropped out, crashed, or was cut off."""

    device: DeviceId
    code: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """Frame that a server sent in a round before it stopped.

    Attributes:
        at_s: time of sending. awaited: the round still waits for the device's answer.
    """

    device: DeviceId
    frame: bytes = field(repr=False)
    at_s: float
    awaited: bool


class Clock(Protocol):
    """Monotonic clock. It is virtual in simulation."""

    def now_s(self) -> float:
        """Read the time in seconds, from an arbitrary start."""
        ...


class Cohort(Clock, Protocol):
    """Synchronous mailbox to the devices."""

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        """Make these blobs, and no others, available to all devices. Returns their SHA-256 digests in order.

        A blob that is available already need not be moved again.
        """
        ...

    def send(self, to: DeviceId, frame: bytes) -> None:
        """Post one frame. Returns at once."""
        ...

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """Resume a round that was interrupted at ``at_s``. Call it after ``publish``.

        It restores every frame in ``sent`` for the devices, and sends the frames again whose answers are awaited.
        """
        ...

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """Wait for the next arrival. Returns None when ``timeout_s`` has passed.

        An arrival counts as delivered with the next call. An arrival before a stop of the server that was not
        delivered may come again.
        """
        ...

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """Drop everything that has not arrived. The round goes on with the devices ``keep`` only."""
        ...

    def carry(self, at_work: Mapping[DeviceId, int]) -> None:
        """End an asynchronous round. Devices work on over its end.

        Drop everything that has not arrived, except from the devices ``at_work``, device -> the round of the invitation
        that it works on. Frames of these to and from other rounds are dropped too.
        """
        ...


@dataclass(frozen=True, slots=True)
class Trust:
    """Identities of devices and servers, known before a run and not taken from the other side of the wire.

    Attributes:
        registry: device -> its enrolled Ed25519 key, None for an unknown device.
        identity: device -> its own secret Ed25519 key. A driver knows those of its own devices only.
        leader, helper: public HPKE keys of the two servers. None where there is one server.
        roster: all devices of the run, sorted. Cohorts that devices verify are drawn from it.
    """

    registry: Callable[[DeviceId], bytes | None] = field(repr=False)
    identity: Callable[[DeviceId], bytes] = field(repr=False)
    leader: bytes | None = None
    helper: bytes | None = None
    roster: tuple[DeviceId, ...] = ()


class Helper(Protocol):
    """Second server, which holds one share of every contribution (``secagg.two_server``)."""

    def begin(self, invite: Invite, beacon: bytes | None = None) -> None:
        """Begin a new round, and forget the reports of the last one.

        ``beacon``: the blob that the invitation's cohort is drawn from, where devices verify cohorts. The helper
        verifies it as a device does, and admits no report of a device outside the cohort (E-COHORT).

        The helper computes the smallest batch and the session's id from its own plan and from the invitation as the
        devices received it. It takes neither from the leader. It refuses an invitation that a device would refuse, one
        of an earlier round, and one of a round whose batch was opened, because two batches that differ by one report
        would show that report. It refuses a cohort that it cannot verify. Then ``admit`` and ``open`` refuse with the
        code.
        """
        ...

    def admit(self, ticket: bytes) -> str | None:
        """Admit a report to the batch, by its ticket (``two_server.dump_ticket``). Returns the code of a refusal, or
        None."""
        ...

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """Open the helper's share of the batch's sum. Raises DecodeError where it refuses."""
        ...


@dataclass(frozen=True, slots=True)
class Began:
    """First record of a round's log: values that the server draws once, and needs again when the round resumes.

    Attributes:
        at_s: on the cohort's clock. attempt: the round's name in the privacy ledger.
        nonce: makes the round's secure aggregation unlike any other. The server sends it to devices. None without
        secure aggregation. dealing: decides the groups of masked sums. invited: the cohort.
    """

    at_s: float
    attempt: str
    nonce: bytes | None = field(repr=False)
    dealing: Key = field(repr=False)
    invited: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Expired:
    """Record of a deadline that passed, of the round or of a step of its secure aggregation."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Pinned:
    """Record of the devices in a group's sum. It is written before devices hear of the list."""

    group: int
    survivors: tuple[DeviceId, ...]


@dataclass(frozen=True, slots=True)
class Resumed:
    """Record of a resumed round. All deadlines are ``by_s`` later."""

    by_s: float


Record = Began | Arrived | Absent | Expired | Pinned | Resumed


class Journal(Protocol):
    """Write-ahead log of one round, which survives a crash. The round's state is a fold of its records."""

    def replay(self) -> Iterable[Record]:
        """Read the records written so far, one at a time, without a torn last one.

        Read all of them before the next ``append``.
        """
        ...

    def append(self, record: Record) -> None:
        """Write one record before it takes effect."""
        ...

    def sync(self) -> None:
        """Make all records survive a power cut before returning."""
        ...


class Evaluator(Protocol):
    """Measures models on text that no device trains on."""

    def evaluate(self, model: str, round: int, params: Vector) -> Evaluated:
        """Measure the held-out losses of ``params`` (float32[d]), the model of this name after ``round`` (-1: base)."""
        ...


class Distiller(Protocol):
    """Distils the model of a round again, on the server (the recipe's section [distill])."""

    def distil(self, round: int, params: Vector) -> tuple[Vector, Redistilled]:
        """Return the model to go on with, and what came of the distillation.

        Args:
            params: float32[d], the model after the round's step. It is not changed.
        Returns:
            The distilled model, or ``params`` where the event says that it is rejected.
        Guarantees:
            Equal arguments give equal bits, also after a crash within the call or before the round is committed.
        """
        ...


class DeviceStore(Protocol):
    """Durable states of devices between two frames: codec memory, the last round answered, and the device's side of a
    secure aggregation under way."""

    def load(self, device: DeviceId) -> Kept | None:
        """Load the state saved last. None for a device that has saved none. Raises StoreError for a damaged one."""
        ...

    def save(self, device: DeviceId, state: Kept) -> None:
        """Replace a device's state, whole or not at all. Call it before the frame that goes with the state leaves.

        Raises StoreError where the state cannot be saved. Then the frame must not leave.
        """
        ...


class Shelf(Protocol):
    """Durable place for one value of a run, the progress of its beacon (``engine.beacon_server``)."""

    def load(self) -> bytes | None:
        """Load the value saved last. None before the first."""
        ...

    def save(self, raw: bytes) -> None:
        """Replace the value. It is durable when this returns."""
        ...


class Store(Protocol):
    """Durable state of one run. A commit is one transaction: all of it is there after a crash, or none."""

    def load(self) -> Checkpoint | None:
        """Load the last committed checkpoint. None before the first commit."""
        ...

    def journal(self, round: int) -> Journal:
        """Open the round's write-ahead log."""
        ...

    def standing(self, devices: Sequence[DeviceId]) -> Mapping[DeviceId, Standing]:
        """Look up the standing of each of these devices, in their order."""
        ...

    def commit(
        self,
        checkpoint: Checkpoint,
        events: Sequence[AnyEvent],
        change: Change = Change(),  # noqa: B008 (immutable)
        total: Aggregate | None = None,
    ) -> None:
        """Save a checkpoint with the events that led to it (evaluations with their per-device rows).

        Args: change: of devices' standing, by the round before ``next_round``. total: that round's released aggregate,
        None where it released nothing.
        """
        ...

    @property
    def beacon(self) -> Shelf:
        """Place of the run's beacon."""
        ...

    def charge(self, charge: LedgerEntry) -> None:
        """Write a charge to the privacy ledger, in a transaction of its own. Call it before the sum is opened.

        A charge for the same round and attempt is written once.
        """
        ...

    def charges(self) -> tuple[LedgerEntry, ...]:
        """Load the ledger's rows in order."""
        ...

    def evaluated(self, model: str, round: int) -> bool:
        """Tell whether this evaluation is already stored."""
        ...

    def append(self, event: AnyEvent) -> None:
        """Store one event (evaluations with their per-device rows) in a transaction of its own."""
        ...

    def evaluations(self) -> Sequence[Evaluated]:
        """Load the stored evaluations of all models."""
        ...

    def keep(self, name: str, x: Vector, note: int = 0) -> None:
        """Store a vector durably under a name, in place of an earlier one. ``note`` is a number of the caller's."""
        ...

    def keep_model(self, name: str, played: int) -> None:
        """Keep the stored model after ``played`` rounds under a name, as ``keep`` does with this number as the note.

        It must be among the newest models. Nothing is read or written where it is kept already.
        """
        ...

    def kept(self, name: str) -> tuple[Vector, int] | None:
        """Load the vector and the number stored under a name. None where there are none."""
        ...
