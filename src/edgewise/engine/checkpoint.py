"""State of a run between two rounds: the checkpoint, the broadcast model, and the standing of devices.

A ``Store`` (``engine.ports``) keeps it. A stopped run continues from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edgewise.core.memory import Memory
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector
from edgewise.strategies.base import State


@dataclass(frozen=True, slots=True)
class DeltaBlob:
    """Compressed step of the broadcast model in one round.

    Attributes:
        round: the round whose model it leads to, from the one before.
        digest: of ``blob``. base: digest of the model that it starts from. blob: an encoded ``frame.Delta``.
    """

    round: int
    digest: str
    base: str
    blob: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Downlink:
    """Broadcast model of a run and its latest deltas (``engine.broadcast``).

    Attributes:
        round: the next round to play, which ``shadow`` is for.
        shadow: float32[d], the model that devices train from in that round.
        model: digest of ``shadow``.
        ring: the latest deltas, of consecutive rounds up to ``round``. Together they are smaller than a snapshot, but
            the newest is always there. Empty before the first, and after a model that was distilled again.
        anchor: float32[d], the model that the ring starts from.
    """

    round: int
    shadow: Vector = field(repr=False)
    model: str
    ring: tuple[DeltaBlob, ...]
    anchor: Vector = field(repr=False)

    @property
    def anchor_round(self) -> int:
        """Round whose model ``anchor`` was."""
        return self.round - len(self.ring)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State of a run between two rounds.

    Attributes:
        next_round: the round to play next.
        state: strategy state. ``state.params`` is the current model.
        unmet: number of abandoned rounds in a row.
        memory: the server's codec memory between rounds, arrays by name: ``Pipeline.start_memory``, and the positions
            of the last release (``engine.broadcast.SUPPORT``).
        down: the broadcast model. None where devices download the model itself.
        epsilon: spent so far. 0 without differential privacy.
    """

    next_round: int
    state: State
    unmet: int = 0
    memory: Memory = field(default_factory=Memory)
    down: Downlink | None = None
    epsilon: float = 0.0

    __repr__ = outline


class Standing(NamedTuple):
    """Server's record of a device.

    Attributes:
        accepted: round of the invitation of its last contribution that entered a model. None: there is none.
        held: round whose model it certainly has. None: not known, or too old for the deltas.
    """

    accepted: int | None = None
    held: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Changes of devices' standing by one round. Nothing is written for other devices.

    Attributes:
        accepted: devices whose contributions entered the round's model.
        had: devices that sent an update of the round's model, so they have it.
        stale: devices without a model that a delta starts from.
        versions: in asynchronous rounds, device -> the round of its invitation, where that is an earlier one. Its
            contribution is to that round.
    """

    accepted: Sequence[DeviceId] = ()
    had: Sequence[DeviceId] = ()
    stale: Sequence[DeviceId] = ()
    versions: Mapping[DeviceId, int] = field(default_factory=dict)
