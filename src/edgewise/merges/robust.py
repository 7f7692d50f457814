"""Robust rules that combine several vectors, some of which may be arbitrary, coordinate by coordinate.

With f of g vectors arbitrary and the others within a range at a coordinate, the result is within that range there:

    median         g > 2 f    the middle value, or the mean of the two in the middle
    trimmed_mean   g > 2 f    the mean without the f largest and the f smallest

Source: Yin et al. 2018, arXiv:1803.01498.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.core.stage import Rule

RuleName = Literal["median", "trimmed_mean"]
_BLOCK = 1 << 16  # Coordinates at a time, so that sorting needs no second copy of all rows.


def rule(name: RuleName, byzantine: int) -> Rule:
    """Make a rule: float64[g, d] with g > 2 ``byzantine`` -> [d]. The rule raises ValueError for fewer rows."""

    def apply(rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if rows.shape[0] <= 2 * byzantine:
            raise ValueError(f"{rows.shape[0]} rows are too few when {byzantine} of them may be arbitrary")
        out = np.empty(rows.shape[1])
        for start in range(0, out.size, _BLOCK):
            block = rows[:, start : start + _BLOCK]
            if name == "median":
                out[start : start + _BLOCK] = np.median(block, axis=0)
            else:
                trimmed = np.sort(block, axis=0)[byzantine : rows.shape[0] - byzantine]
                out[start : start + _BLOCK] = trimmed.mean(axis=0)
        return out

    return apply
