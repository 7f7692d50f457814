"""Speed of a device's link, measured on its own transfers.

speed = Speed()
speed.down.note(size, seconds); speed.up.note(size, seconds)
speed.up_mbit                        # the probable speed of the next upload, for ``codec = "adaptive"``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgewise.plan.upload_budget import link_estimate

SAMPLE_BYTES = 2**16  # the smallest transfer that measures the link
LEAST_BYTES = 2**11  # the smallest transfer that gives a hint
HISTORY = 16
SLOWER_UP = 10.0  # downlink / uplink where only the downlink is known: the ratio of a usual DSL or cable line


class Samples:
    """The last transfers of one direction in Mbit/s, oldest first.

    The time of a small transfer is mostly latency. It tells little about the link, but never overestimates it. So
    transfers from ``LEAST_BYTES`` count until one of ``SAMPLE_BYTES`` was measured. Otherwise a device that sends
    little, because its link is unknown, would never learn more.
    """

    def __init__(self) -> None:
        self._mbit: deque[float] = deque(maxlen=HISTORY)
        self._only_small = True

    def note(self, size: int, seconds: float) -> None:
        """Remember a transfer of ``size`` bytes, if it was large enough."""
        large = size >= SAMPLE_BYTES
        if seconds <= 0.0 or size < LEAST_BYTES or not (large or self._only_small):
            return
        if large and self._only_small:
            self._mbit.clear()
            self._only_small = False
        self._mbit.append(8e-6 * size / seconds)

    def __iter__(self) -> Iterator[float]:
        return iter(self._mbit)

    def __len__(self) -> int:
        return len(self._mbit)

    @property
    def mbit(self) -> float:
        """The probable speed of the next transfer (``plan.upload_budget.link_estimate``). 0.0 where nothing is
        known.
        """
        return link_estimate(tuple(self._mbit))


@dataclass(slots=True)
class Speed:
    """Both directions of a link."""

    up: Samples = field(default_factory=Samples)
    down: Samples = field(default_factory=Samples)

    @property
    def up_mbit(self) -> float:
        """The probable speed of the next upload, Mbit/s.

        It comes from earlier uploads, otherwise from ``1 / SLOWER_UP`` of the downlink. 0.0 where nothing is known; the
        device then uses the smallest rung.
        """
        return self.up.mbit or self.down.mbit / SLOWER_UP
