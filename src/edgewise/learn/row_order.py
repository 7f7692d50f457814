"""The order in which a device's records come up in training. It needs no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgewise.core.keys import Key, generator
from edgewise.core.vector import Array


def row_order(n: int, steps: int, batch: int, key: Key) -> Iterator[Array]:
    """Deal out the row numbers of each step: random permutations of ``n`` rows one after another, ``batch`` at a time.

    With fewer rows than ``batch``, each step takes all of them once. Repeated rows would cost time and would not change
    the mean.
    """
    rng, batch = generator(key), min(batch, n)
    waiting = np.zeros(0, np.int64)
    for _ in range(steps):
        if len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        yield waiting[:batch]
        waiting = waiting[batch:]
