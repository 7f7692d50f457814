"""Screened mean: the mean of updates, made again without those that are far from the others."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from edgewise.core.keys import Key
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.space import Total
from edgewise.core.stage import Merge, Rows
from edgewise.merges import robust
from edgewise.merges.robust_mean import Byzantine
from edgewise.merges.seen import seen_merge

PIECE = 1 << 16  # Coordinates at a time, so that medians need no second copy of all rows.


@part
def screened(
    byzantine: Byzantine = 1,
    limit: Annotated[float, Ge(1), Le(1e6), Doc("median distances from the others at which an update is left out")] = 3,
) -> Merge:
    """Take the mean of updates, without those that are far from the others.

    With m the median of each coordinate of the n updates x_i, and R the median of the distances |x_i - m|, the result
    is the mean of the updates with |x_i - m| <= ``limit`` R. Where none is far it is the plain mean, so text that few
    devices have counts in full.

    Each device counts the same, whatever its weight is. Metrics are combined by the trimmed mean.
    Guarantees: with at most ``byzantine`` devices that send anything, R is at most the largest distance of an honest
        update, and each coordinate of m is within the range of the honest ones. The result is within ``limit`` R of m.
        So it stops updates that are long. It does not stop lies that are as near as honest updates: take
        ``robust_mean`` with ``before = "nnm"`` against them. At least half of the updates stay. The result is the same
        for every order of arrival.
    Algebra: sensitivity inf, so no noise can be added to the result.
    Memory: 20 bytes for each coordinate of each contribution, on the server.
    Raises: CompositionError(E-BYZANTINE) for rounds that may have no honest majority.

    Example: ``[merge] kind = "screened", byzantine = 4``.
    """
    trimmed = robust.rule("trimmed_mean", byzantine)

    def combine(bodies: Rows, heads: Rows, memory: Memory, key: Key) -> tuple[Rows, Rows, Memory]:
        return near_mean(bodies, limit), trimmed(heads), memory

    def says(total: Total) -> str:
        return f"takes their mean without those that are {limit:g} median distances from the medians"

    least = robust.least_rows("trimmed_mean", byzantine)
    return seen_merge(f"screened({byzantine}, {limit:g})", "a screened mean", byzantine, least, says, combine)


def near_mean(rows: Rows, limit: float) -> Rows:
    """Compute the mean of the rows of float64[n, d] that are no farther than ``limit`` median distances.

    Example:
        >>> near_mean(np.array([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [-9.0, 0.0]]), 3.0)
        array([1., 0.])
    """
    rows, squares = robust.prepared(rows, 0, "none"), np.zeros(len(rows))
    for start in range(0, rows.shape[1], PIECE):
        block = rows[:, start : start + PIECE]
        squares += ((block - np.median(block, axis=0)) ** 2).sum(axis=1)
    distances = np.sqrt(squares)
    return np.asarray(rows[distances <= limit * np.median(distances)].mean(axis=0))
