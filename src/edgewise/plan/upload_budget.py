"""What a device may upload, by its own measurements. Pure: the device, the simulator and `edgewise check` agree."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

GAIN, DEVIATION_GAIN = 0.25, 0.25  # of the moving averages; RFC 6298 takes 1/8 and 1/4 of many more samples
CAUTION = 2.0  # deviations above the mean, in seconds per megabit


def upload_budget(cap_bytes: float, until_s: float, elapsed_s: float, up_mbit: float) -> float:
    """``min(cap, up_mbit 10^6 / 8 (until - elapsed))``, never below 0.

    Args:
        cap_bytes: limit whatever the link. until_s: seconds from the invitation to when the upload is to be complete.
        elapsed_s: spent on download and training. up_mbit: link, megabit a second; inf = not a limit (the cap is, while
            there is time left), 0 = nothing is known of it, so nothing is dared: the smallest rung.
    Source: Kimad, arXiv:2312.08053, section 3 (budget = bandwidth x time left).
    """
    left_s = until_s - elapsed_s
    if left_s <= 0.0 or up_mbit <= 0.0:
        return 0.0
    return cap_bytes if up_mbit == inf else min(cap_bytes, up_mbit * 1e6 / 8.0 * left_s)


def link_estimate(past_mbit: Sequence[float]) -> float:
    """A link speed, megabit a second, that the next transfer will probably reach, from past ones (oldest first).

    Averages run over seconds per megabit, t = 1 / speed, since those add up; with t_1 the first sample:
    ``m = t_1, v = t_1 / 2``, then ``v += (|t - m| - v) / 4``, ``m += (t - m) / 4``; the estimate is ``1 / (m + 2 v)``.
    So a steady link is trusted more with every transfer, and the first guess is half of the first measurement.
    Edge cases: no sample gives 0 (``upload_budget``: nothing is dared); a sample of 0 gives 0.
    Source: Jacobson 1988; RFC 6298, section 2 (retransmission time-outs), with 2 deviations in place of 4.
    """
    if not past_mbit or min(past_mbit) <= 0.0:
        return 0.0
    mean = 1.0 / past_mbit[0]
    deviation = mean / 2.0
    for speed in past_mbit[1:]:
        t = 1.0 / speed
        deviation += DEVIATION_GAIN * (abs(t - mean) - deviation)
        mean += GAIN * (t - mean)
    return 1.0 / (mean + CAUTION * deviation)
