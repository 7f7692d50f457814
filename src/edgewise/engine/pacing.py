"""Pacing of check-ins: each device without mail is told when to come back, so that a server's load stays level.

    pace = Pace(rate=500.0)
    pause_s = pace.pause_s(now_s, draw)        # the hint in the answer to one check-in

The hints are places in a queue of returns, ``rate`` to a second. The wait is then the number of devices that are active
now, divided by the rate, and nobody counts them: by night the queue is shorter than by day. Few devices find the queue
empty, and wait ``LEAST_S``. Many that come at once leave with times that lie apart.

Source of the idea: Bonawitz et al., "Towards Federated Learning at Scale: System Design" (2019), section 2.3, "pace
steering". It names the aims (no thundering herd, as often as needed, daily swings) and no formula. This one is our own.
"""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

RATE = 1000.0  # check-ins per second that one core was measured to answer (benchmarks/checkins.py)
LEAST_S = 30.0
LONGEST_S = 900.0  # a round that waits for invited devices lasts longer than this where its fleet is that large


def check_in_pauses(
    next_s: float, now_s: float, draws: NDArray[np.float64], rate: float = RATE
) -> tuple[NDArray[np.float64], float]:
    """Give places in the queue of returns to devices that ask at the same time.

        first = max(next, now + LEAST)
        pause[i] = first + i / rate - now                        up to LONGEST
                 = LONGEST (1 + draw[i]) / 2                     beyond: the queue is full

    Args:
        next_s: the first free place, by any clock that does not go back. now_s: by the same clock.
        draws: float64[n] in [0, 1), one for each device. They spread those for whom the queue is full.
        rate: places in a second, positive.
    Returns:
        The seconds that each waits, float64[n], and the first place that is free now.

    Example:
        pauses(0.0, 100.0, np.zeros(3), rate=2.0)          # ([30.0, 30.5, 31.0], 131.5)
    """
    first = max(next_s, now_s + LEAST_S)
    waits = (first - now_s) + np.arange(len(draws)) / rate
    queued = int(np.searchsorted(waits, LONGEST_S, side="right"))
    waits[queued:] = LONGEST_S * (1.0 + draws[queued:]) / 2.0
    return waits, first + queued / rate


def longest_s(devices: int, rate: float = RATE) -> float:
    """Return the longest pause of a fleet in which each of so many devices has one place in the queue.

        min(LONGEST, LEAST + devices / rate)

    Example:
        longest_s(100_000)                                  # 130.0
    """
    return min(LONGEST_S, LEAST_S + devices / rate)


def poll_s(wait_s: float, draw: float) -> float:
    """Return the duration of a long poll that may last ``wait_s``: wait (1 + draw) / 2. ``draw``: uniform in [0, 1).

    Polls of one duration that began together, as after a restart, would end together for ever.
    """
    return wait_s * (1.0 + draw) / 2.0


class Pace:
    """The queue of returns of one server. Only one thread may use it."""

    def __init__(self, rate: float = RATE) -> None:
        self._rate, self._next_s = rate, -inf

    def pause_s(self, now_s: float, draw: float) -> float:
        """Return the seconds after which one device comes back. ``draw``: uniform in [0, 1)."""
        return float(self.pauses(now_s, np.array([draw]))[0])

    def pauses(self, now_s: float, draws: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the seconds after which each device comes back. As the function ``pauses``."""
        waits, self._next_s = check_in_pauses(self._next_s, now_s, draws, self._rate)
        return waits
