"""Rules that give one vector for several of which some may be anything: coordinate by coordinate, no vector is trusted.

With f of g vectors arbitrary and the others within a range at a coordinate, the result is within that range there:

    median         g > 2 f    the middle one, or the mean of the two in the middle
    trimmed_mean   g > 2 f    the mean of what is left without the f largest and the f smallest

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.core.stage import Rule

RuleName = Literal["median", "trimmed_mean"]
_BLOCK = 1 << 16  # coordinates at a time, so that sorting takes no second copy of all rows


def rule(name: RuleName, byzantine: int) -> Rule:
    """``rows``: [g, d], g > 2 ``byzantine`` -> [d]. Raises ValueError for fewer rows."""

    def apply(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if rows.shape[0] <= 2 * byzantine:
            raise ValueError(f"{rows.shape[0]} rows, of which {byzantine} may be anything")
        out = np.empty(rows.shape[1])
        for start in range(0, out.size, _BLOCK):
            block = rows[:, start : start + _BLOCK]
            if name == "median":
                out[start : start + _BLOCK] = np.median(block, axis=0)
            else:
                kept = np.sort(block, axis=0)[byzantine : rows.shape[0] - byzantine]
                out[start : start + _BLOCK] = kept.mean(axis=0)
        return out

    return apply
