"""How fast a device's link is, measured on its own transfers.

speed = Speed()
speed.down.note(size, seconds); speed.up.note(size, seconds)
speed.up_mbit                        # what the next upload will probably reach, for ``codec = "adaptive"``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgewise.plan.upload_budget import link_estimate

SAMPLE_BYTES = 2**16  # transfers from this size measure the link
LEAST_BYTES = 2**11  # transfers from this size hint at it
HISTORY = 16
SLOWER_UP = 10.0  # downlink / uplink of a link of which only the downlink is known: that of a usual DSL or cable line


class Samples:
    """The last transfers of one direction in Mbit/s, oldest first.

    A small transfer takes as long as its latency: it says little of the link, but never too much. So transfers from
    ``LEAST_BYTES`` count until one of ``SAMPLE_BYTES`` was measured. Without them a device that sends little, because
    nothing is known of its link, would never learn more.
    """

    def __init__(self) -> None:
        self._mbit: deque[float] = deque(maxlen=HISTORY)
        self._only_small = True

    def note(self, size: int, seconds: float) -> None:
        """Remember a transfer of ``size`` bytes, if it was large enough to say something."""
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
        """What the next transfer will probably reach (``plan.upload_budget.link_estimate``); 0.0 where nothing is
        known."""
        return link_estimate(tuple(self._mbit))


@dataclass(slots=True)
class Speed:
    """Both directions of a link."""

    up: Samples = field(default_factory=Samples)
    down: Samples = field(default_factory=Samples)

    @property
    def up_mbit(self) -> float:
        """What the next upload will probably reach, Mbit/s: by earlier ones, else ``1 / SLOWER_UP`` of the downlink;
        0.0 where nothing is known, which dares the smallest rung alone."""
        return self.up.mbit or self.down.mbit / SLOWER_UP
