"""Invitations of earlier rounds that devices still work on, in asynchronous rounds.

    work = load(checkpoint.memory)                     nothing before the first round
    carried, outdated = sorted_out(work, round, rule)
    invited = replacements(rule, population, work, key, round)
    memory = save(memory, after(work, facts, closed, now_s))

A round waits for ``round.cohort`` contributions, of whichever devices. The others go on, and their contributions count
in a later round, at most ``max_staleness`` rounds after their invitation. The places of devices that have answered, are
lost or are too slow go to other devices when the next model is there. So ``concurrency`` devices train at any time, a
device has one invitation at a time, and it contributes to a round once.

The record is a part of the checkpoint's memory. It has the invitations themselves, so a server that was stopped sends
the same bytes again.
Source: Nguyen et al. 2022, arXiv:2106.06639 (FedBuff); Huba et al. 2022, arXiv:2111.04877 (Papaya).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import msgspec
import numpy as np

from edgewise.core import vector
from edgewise.core.errors import StoreError
from edgewise.core.keys import Key, derive, generator
from edgewise.core.memory import Memory
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.engine.broadcast import Letters
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.ports import Began, Cohort, Sent, Store
from edgewise.engine.round_states import Closed
from edgewise.plan.plan import Plan
from edgewise.plan.sampling import Buffer

WORK, RECORD = "work", "record"  # child of the checkpoint's memory, and the array in it: uint8[], MessagePack


class Outstanding(msgspec.Struct, frozen=True):
    """Invitation that awaits an answer.

    Attributes:
        version: the round of the invitation, whose model the device trains from. at_s: when it was sent, on the
        cohort's clock, which goes on over all rounds. size: bytes that the device downloads. frame: the invitation.
    """

    device: str
    version: int
    at_s: float
    size: int
    frame: bytes

    __repr__ = outline


class Work(msgspec.Struct, frozen=True):
    """Devices at work between two rounds.

    Attributes:
        clock_s: the cohort's clock at the end of the last round. outstanding: in the order of the invitations.
        resting: device -> the round that its last contribution came to, or that a lost one was invited to, as long as
            that keeps it from an invitation.
    """

    clock_s: float = 0.0
    outstanding: tuple[Outstanding, ...] = ()
    resting: dict[str, int] = {}

    __repr__ = outline


class OpenedRound(Protocol):
    """Facts of a round that this record needs (``engine.round_facts.RoundFacts``)."""

    @property
    def round(self) -> int:
        """Number of the round."""
        ...

    @property
    def began(self) -> Began:
        """Values that the server drew for it."""
        ...

    @property
    def letters(self) -> Letters:
        """Its own invitations."""
        ...

    @property
    def carried(self) -> tuple[Outstanding, ...]:
        """Earlier invitations that may count in it."""
        ...

    @property
    def outdated(self) -> tuple[Outstanding, ...]:
        """Earlier invitations that are too old for it."""
        ...

    @property
    def buffer(self) -> Buffer | None:
        """Rule of asynchronous rounds."""
        ...


def load(memory: Memory) -> Work:
    """Read the record from the memory of a checkpoint. Raises StoreError(E-CHECKPOINT) for a damaged one."""
    if (raw := memory.child(WORK).get(RECORD)) is None:
        return Work()
    try:
        return msgspec.msgpack.decode(raw.tobytes(), type=Work)
    except msgspec.DecodeError:
        what = "the record of the devices at work is damaged."
        raise StoreError("E-CHECKPOINT", what, "put a whole copy of the folder in its place.") from None


def save(memory: Memory, work: Work) -> Memory:
    """Put the record into the memory of a checkpoint."""
    raw = np.frombuffer(msgspec.msgpack.encode(work), np.uint8)
    return memory.put(WORK, None, Memory({RECORD: raw}))


def sorted_out(work: Work, round: int, rule: Buffer) -> tuple[tuple[Outstanding, ...], tuple[Outstanding, ...]]:
    """Split the outstanding invitations into those that may count in ``round``, and those that are too old."""
    carried = tuple(one for one in work.outstanding if round - one.version <= rule.max_staleness)
    return carried, tuple(one for one in work.outstanding if round - one.version > rule.max_staleness)


def replacements(
    rule: Buffer, population: Sequence[DeviceId], work: Work, key: Key, round: int
) -> tuple[DeviceId, ...]:
    """Draw the devices that ``round`` invites, uniformly among those that may be, in population order.

    As many as are missing from ``rule.concurrency``. A device with an outstanding invitation is not drawn, too old or
    not, nor one that contributed to one of the last ``rule.rest`` - 1 rounds, or was lost from one of them.
    """
    carried, _ = sorted_out(work, round, rule)
    taken = {one.device for one in work.outstanding}
    taken |= {device for device, last in work.resting.items() if round - last < rule.rest}
    free = [device for device in population if device not in taken]
    n = min(len(free), max(0, rule.concurrency - len(carried)))
    chosen = generator(derive(key, "cohort", round)).choice(len(free), n, replace=False) if n else np.zeros(0, np.int64)
    return tuple(free[i] for i in sorted(chosen.tolist()))


def after(before: Work, facts: OpenedRound, closed: Closed, now_s: float, rest: int) -> Work:
    """Make the record after a round. ``now_s``: the cohort's clock at its end."""
    began, letters, waiting = facts.began, facts.letters, set(closed.late)
    new = (
        Outstanding(device, facts.round, began.at_s, letters.sizes[device], raw)
        for device, raw in letters.frames.items()
    )
    left = tuple(one for one in (*facts.carried, *new) if one.device in waiting)
    earlier = versions((*facts.carried, *facts.outdated))
    resting = before.resting | dict.fromkeys(closed.accepted, facts.round)
    for device, _ in closed.lost:  # Its update may have left before it was lost.
        resting[device] = earlier.get(device, facts.round)
    return Work(now_s, left, {device: last for device, last in resting.items() if facts.round + 1 - last < rest})


def recorded(stepped: Checkpoint, before: Checkpoint, facts: OpenedRound, closed: Closed, now_s: float) -> Checkpoint:
    """Put the record after an asynchronous round into its checkpoint. ``before``: the checkpoint before the round."""
    if facts.buffer is None:
        return stepped
    work = after(load(before.memory), facts, closed, now_s, facts.buffer.rest)
    return replace(stepped, memory=save(stepped.memory, work))


def sent(invitations: Collection[Outstanding]) -> list[Sent]:
    """List the invitations as frames that still await their answers."""
    return [Sent(one.device, one.frame, one.at_s, awaited=True) for one in invitations]


class OlderModels:
    """Models of earlier rounds that invited devices may not have downloaded yet.

    The store keeps the newest ``Buffer.versions`` models by names that are used in turn.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        """Begin without any model in memory."""
        self._rule, self._rounds, self._store = plan.sampling.buffer, plan.rounds, store
        self._held: dict[int, vector.Buffer] = {}
        self.goes_on = False  # The cohort of this process has the outstanding invitations.

    def blobs(self, checkpoint: Checkpoint, facts: OpenedRound) -> tuple[vector.Buffer, ...]:
        """Keep the model of the next round, and return those of outstanding invitations, the oldest first.

        Raises StoreError(E-CHECKPOINT) where the store has lost one.
        """
        if self._rule is None:
            return ()
        number, versions = checkpoint.next_round, sorted({one.version for one in facts.carried})
        self._store.keep_model(self._name(number), number)
        self._held = {v: self._held[v] if v in self._held else self._stored(v) for v in versions}
        blobs = tuple(self._held[version] for version in versions)
        self._held[number] = vector.to_bytes(checkpoint.state.params)
        return blobs

    def go_on(self, cohort: Cohort, checkpoint: Checkpoint, facts: OpenedRound) -> None:
        """Set the cohort's clock to the end of the last round. That of a new process gets the invitations too."""
        if self._rule is not None and checkpoint.next_round:
            if not self.goes_on:  # The process before may have stopped between a commit and ``carry``.
                cohort.carry(versions(facts.carried))
            cohort.resume(() if self.goes_on else sent(facts.carried), load(checkpoint.memory).clock_s)
        self.goes_on = True

    def carry(self, cohort: Cohort, after: Checkpoint) -> None:
        """End a committed round. After the last one no device goes on."""
        if self._rule is not None:
            carried, _ = sorted_out(load(after.memory), after.next_round, self._rule)
            cohort.carry(versions(carried) if after.next_round < self._rounds else {})

    def _name(self, version: int) -> str:
        """Name under which the store keeps a model."""
        assert self._rule is not None
        return f"version {version % self._rule.versions}"

    def _stored(self, version: int) -> vector.Buffer:
        """Load a model of an earlier round."""
        kept = self._store.kept(self._name(version))
        if kept is None or kept[1] != version:
            what = f"the model before round {version} is gone, and devices still train from it."
            raise StoreError("E-CHECKPOINT", what, "put a whole copy of the folder in its place.")
        return vector.to_bytes(kept[0])


def versions(invitations: Collection[Outstanding]) -> Mapping[DeviceId, int]:
    """Map devices to the rounds of their invitations."""
    return {one.device: one.version for one in invitations}
