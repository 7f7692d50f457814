"""Fewer points of a long curve, so that a page with 100,000 rounds is as small as one with 1,000.

    kept = thinned([losses, sizes], 250)         # indices that are drawn

Each bucket of points keeps the lowest and the highest value of each curve, so no spike disappears.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def thinned(curves: Sequence[NDArray[np.float64]], buckets: int) -> NDArray[np.int64]:
    """Select indices of curves with one x axis.

    Args:
        curves: float64[n] each; NaN where a curve has no value.
        buckets: number of equal parts of the x axis.
    Returns:
        int64[m], sorted and unique, with the first and the last index. m is at most 2 ``buckets`` len(curves) + 2, and
        all n where that is no more.
    """
    n = len(curves[0]) if curves else 0
    if n <= 2 * buckets * max(1, len(curves)) + 2:
        return np.arange(n, dtype=np.int64)
    edges = np.linspace(0, n, buckets + 1).astype(np.int64)
    chosen = [np.array([0, n - 1], dtype=np.int64)]
    for curve in curves:
        for pick, empty in ((np.argmin, np.inf), (np.argmax, -np.inf)):
            full = np.where(np.isfinite(curve), curve, empty)
            chosen.append(np.array([a + pick(full[a:b]) for a, b in pairwise(edges)], np.int64))
    return np.unique(np.concatenate(chosen))
