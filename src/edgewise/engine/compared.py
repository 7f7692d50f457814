"""Distances of the updates of a round from each other, for merges that keep the updates of a round one by one.

    for event in compared(pipe, turn, total): ...

The centre is the median of each coordinate, which fewer than half of the devices cannot move beyond honest values
there.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgewise.core import events
from edgewise.core.keys import Turn
from edgewise.core.pipeline import PIECE, Pipeline
from edgewise.core.stage import Sum
from edgewise.merges.seen import Seen


def compared(pipe: Pipeline, turn: Turn, total: Sum) -> Iterator[events.Compared]:
    """Compare the updates of a round with one another. Yields nothing where the merge keeps none, or fewer than three.

    Time: O(n d log n). Memory: 4 bytes for each coordinate of each update while it compares.
    """
    if not isinstance(total.acc, Seen) or len(total.acc.rows) < 3:
        return
    rows = [pipe.part_mean(row, 1, turn)[0] for row in total.acc.rows]
    lengths, products, distances = np.zeros((3, len(rows)))
    centre_length = 0.0
    for start in range(0, rows[0].size, PIECE):
        block = np.stack([row[start : start + PIECE] for row in rows]).astype(np.float64)
        centre = np.median(block, axis=0)
        lengths += (block**2).sum(1)
        products += block @ centre
        distances += ((block - centre) ** 2).sum(1)
        centre_length += float(centre @ centre)
    scale = np.sqrt(lengths * centre_length)
    cosines = np.divide(products, scale, out=np.zeros(len(rows)), where=scale > 0)
    usual = float(np.median(np.sqrt(distances))) or 1.0
    for i, device in enumerate(total.acc.devices):
        yield events.Compared(
            round=turn.round, device=device, l2=float(np.sqrt(lengths[i])), cosine=float(cosines[i]),
            distance=float(np.sqrt(distances[i])) / usual,
        )  # fmt: skip
