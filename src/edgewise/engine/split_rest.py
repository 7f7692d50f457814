"""The rest of a split model beside the rounds: what a session makes of it, and how a round makes one rest of many.

SplitFed v1 ("each"), devices k of a closed round, w_k the weight of the update:

    S' = sum_k w_k S_k / sum_k w_k          S_k: the rest after the session of device k, from S

SplitFed v2 ("in_turn"): S' is the rest after the last session, each of which begins where the one before it ended.

Source: Thapa et al. 2022, arXiv:2004.12088.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgewise.core import events
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector
from edgewise.engine import split_states as states


@dataclass(frozen=True, slots=True)
class SessionResult:
    """Result of one device's session in a round.

    Attributes:
        rest: float32[s], the rest of the model after it. Empty where it is frozen.
        count: the device's training tokens, as in ``Update.count``.
        steps: optimizer steps. up_bytes, down_bytes: bytes of all messages.
        place: number among the sessions of its round, from 0.
    """

    rest: Vector = field(repr=False)
    count: float
    steps: int
    up_bytes: int
    down_bytes: int
    place: int = 0


@dataclass(frozen=True, slots=True)
class WantedSession:
    """A session that a device's trainer asks for.

    Attributes:
        device_part, rest: digests of the layouts of both parts.
        steps: optimizer steps. window: largest number of micro-batches on their way.
        once: True where noise hides what crosses, so that the session may not begin a second time with other noise.
    """

    round: int
    device_part: str
    rest: str
    u_shape: bool
    steps: int
    window: int
    once: bool = False


class Sessions(Protocol):
    """Holds the rest of the model for a round's sessions, beside what trains. Implemented by ``drivers``."""

    def begin(self, round: int, device: DeviceId) -> Vector:
        """Return the rest that a device's session begins with. The same again where the session is repeated."""
        ...

    def end(self, round: int, device: DeviceId, result: SessionResult) -> None:
        """Make a session's result durable, before the device's contribution leaves."""
        ...

    def ended(self, round: int, device: DeviceId) -> bool:
        """Tell whether a session's result is there already."""
        ...

    def cached(self, device: DeviceId, version: bytes) -> list[bytes] | None:
        """Return the messages with a device's activations, by this version of its part. None where there are none."""
        ...

    def cache(self, device: DeviceId, version: bytes, messages: list[bytes]) -> None:
        """Keep the messages with a device's activations, in place of earlier ones."""
        ...

    @property
    def current(self) -> Vector:
        """The rest of the round's model."""
        ...

    def use(self, round: int, rest: Vector) -> None:
        """Set the rest of the round's model."""
        ...


class RemoteRest(Protocol):
    """Port of a device's trainer: plays its sessions with the rest of the model, which is on another machine."""

    def play(self, wanted: WantedSession, perform: Callable[[states.DeviceEffect], states.DeviceEvent | None]) -> None:
        """Play a session to its end, over as many connections as it takes.

        Args:
            perform: performs the effects of the device's machine. The number of ``SaveAttempt`` is durable before it
                is called.
        Raises:
            EdgewiseError: the code that ended the session, and as ``perform``.
        """
        ...


class RestOfModel(Protocol):
    """Port of the coordinator: the rest of a split model, which moves as rounds close."""

    def start(self) -> Vector:
        """Return the rest before round 0, and forget sessions of another run."""
        ...

    def use(self, round: int, rest: Vector) -> None:
        """Give the sessions of this round, and measurements before it, their rest. Sessions of others are removed."""
        ...

    def closed(
        self, round: int, rest: Vector, accepted: Collection[DeviceId], met: bool
    ) -> tuple[Vector, Sequence[events.SplitSession]]:
        """Return the rest after a round, and the events of its sessions.

        Args:
            rest: of the round's model. accepted: devices whose contributions are in the sum. met: False where the round
            was abandoned, and neither part moves.
        """
        ...


def rest_after(
    kind: str,
    rest: Vector,
    sessions: Mapping[DeviceId, SessionResult],
    read: Callable[[DeviceId], Vector],
    accepted: Collection[DeviceId],
    cap: float | None,
) -> Vector:
    """Compute the rest after a round that was met. It holds one rest of a device at a time.

    Args:
        kind: ``split.server_parts``.
        sessions: those of the round. read: device -> float32[s], the rest after its session.
        cap: of the recipe's ``weigh``, above which tokens add no weight. None: all devices weigh the same.
    """
    if kind == "frozen" or not sessions:
        return rest
    if kind == "in_turn":
        return read(max(sessions, key=lambda device: sessions[device].place))
    total, weights = np.zeros(rest.size, np.float64), 0.0
    for device in sorted(accepted):
        w = 1.0 if cap is None else min(sessions[device].count, cap) / cap
        total += w * read(device).astype(np.float64)
        weights += w
    return (total / weights).astype(np.float32) if weights else rest
