"""The upload budget of a device, from its own measurements. Device, simulator and `edgewise check` share this code."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

# Gains of the moving averages. RFC 6298 takes 1/8 and 1/4, and has many more samples.
GAIN, DEVIATION_GAIN = 0.25, 0.25
CAUTION = 2.0  # The estimate is so many deviations above the mean, in seconds per megabit.


def upload_budget(cap_bytes: float, until_s: float, elapsed_s: float, up_mbit: float) -> float:
    """Return the bytes that a device may upload in the time that is left.

        min(cap, up_mbit 10^6 / 8 (until - elapsed)), and never below 0

    Args:
        cap_bytes: limit for any link.
        until_s: seconds from the invitation to the end of the upload.
        elapsed_s: seconds that download and training took.
        up_mbit: uplink, megabit a second. inf = no limit but the cap. 0 = unknown, which gives 0 bytes and so the
            smallest rung.
    Source: Kimad, arXiv:2312.08053, section 3 (budget = bandwidth x time left).
    """
    left_s = until_s - elapsed_s
    if left_s <= 0.0 or up_mbit <= 0.0:
        return 0.0
    return cap_bytes if up_mbit == inf else min(cap_bytes, up_mbit * 1e6 / 8.0 * left_s)


def link_estimate(past_mbit: Sequence[float]) -> float:
    """Estimate a link speed that the next transfer will probably reach, from past speeds.

    Averages run over seconds per megabit, t = 1 / speed, because those add up. With t_1 the first sample,

        m = t_1, v = t_1 / 2;   then  v += (|t - m| - v) / 4,  m += (t - m) / 4;   estimate = 1 / (m + 2 v)

    The first estimate is half of the first measurement. A steady link is trusted more with every transfer.

    Args:
        past_mbit: speeds of past transfers, megabit a second, the oldest first.
    Returns:
        Megabit a second.
    Edge cases: no sample, or a sample of 0, gives 0.
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
