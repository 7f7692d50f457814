"""Centred clipping: the mean of updates that are cut to a radius around the update of the last round."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from edgewise.core.keys import Key, derive
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.space import Total
from edgewise.core.stage import Merge, Rows
from edgewise.merges import robust
from edgewise.merges.robust_mean import (
    BeforeRule,
    Bucket,
    Byzantine,
    bucket_in_name,
    least_robust_devices,
    merge_words_before,
)
from edgewise.merges.seen import seen_merge

CENTRE = "centre"  # float32[d] in the server's memory: the result of the last round


@part
def centred_clip(
    byzantine: Byzantine = 1,
    radius: Annotated[float, Ge(0), Doc("tau, in units of an update; 0 takes the median of the distances")] = 0.0,
    steps: Annotated[int, Ge(1), Le(100), Doc("of clipping, each around the result of the one before")] = 1,
    before: BeforeRule = "none",
    bucket: Bucket = 1,
) -> Merge:
    """Take the mean of updates that are cut to a radius around the result of the last round (centred clipping).

    With v the result of the last round, zeros before the first, and n updates x_i:

        v += mean_i (x_i - v) min(1, tau / |x_i - v|)          steps times

    A device moves v by no more than tau / n in a step, wherever its update is. So liars gain a little in every round in
    which the rule of a single round would not notice them, and honest devices pull v back. Momentum on devices
    (strategy ``momentum``) makes that pull stronger than what text of one round adds.

    A fixed tau has to be as long as honest updates are apart, and that changes as a model learns. With 0, tau is the
    median of the distances |x_i - v| of the step. Fewer than half of the devices cannot raise it above the distance of
    an honest one.

    Each device counts the same, whatever its weight is. Metrics have no centre: they take the trimmed mean.
    Guarantees: as ``robust_mean`` says of order and of refused contributions. The centre is a released value, so it
        reveals nothing more.
    Algebra: sensitivity inf, so no noise can be added to the result.
    Memory: 20 bytes for each coordinate of each contribution, and 4 for each coordinate of the centre, on the server.
    Raises: CompositionError(E-BYZANTINE) for rounds that may have no honest majority.
    Source: Karimireddy et al. 2021, arXiv:2012.10333, algorithm 2. The median as tau is not theirs.

    Example: ``[merge] kind = "centred_clip", byzantine = 4, bucket = 2``.
    """
    trimmed = robust.rule("trimmed_mean", byzantine)

    def combine(bodies: Rows, heads: Rows, memory: Memory, key: Key) -> tuple[Rows, Rows, Memory]:
        centre = memory.get(CENTRE)
        rows = robust.prepared(robust.bucket_means(bodies, bucket, derive(key, "buckets")), byzantine, before)
        found = clipped_around(np.zeros(rows.shape[1]) if centre is None else centre, rows, radius, steps)
        return found, trimmed(heads), Memory({CENTRE: found.astype(np.float32)})

    def says(total: Total) -> str:
        tau = f"{radius:g}" if radius else "the median distance"
        words = merge_words_before(before, bucket)
        return f"takes the mean{words}, each cut to {tau} around the result of the last round"

    least = least_robust_devices(robust.least_rows("trimmed_mean", byzantine), bucket)
    name = f"centred_clip({byzantine}, {radius:g}{bucket_in_name(bucket)})"
    return seen_merge(name, f"clipping{bucket_in_name(bucket)}", byzantine, least, says, combine, kept=1)


def clipped_around(centre: Rows, rows: Rows, radius: float, steps: int) -> Rows:
    """Compute centred clipping of float64[n, d] around float64[d]. Radius 0 takes the median distance in each step.

    Example:
        >>> clipped_around(np.zeros(2), np.array([[3.0, 4.0], [0.0, 1.0]]), 1.0, 1)
        array([0.3, 0.9])
    """
    point = np.array(centre, np.float64)
    for _ in range(steps):
        moves = np.zeros_like(point)
        away = np.array([np.linalg.norm(row - point) for row in rows])
        tau = radius or float(np.median(away))
        for row, distance in zip(rows, away, strict=True):
            moves += (row - point) * (tau / distance if distance > tau else 1.0)
        point = point + moves / len(rows)
    return point
