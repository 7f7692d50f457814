"""Windows of a device, or their activations, as batches with all classes in equal numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from edgewise.core.keys import Key, derive
from edgewise.core.vector import Array
from edgewise.learn.row_order import row_order
from edgewise.plan.recipe.sections import TrainingSection

Batch = tuple[Tensor, Tensor]  # windows or activations, and labels int64[B]


class BalancedShard:
    """Examples of a device. A batch draws a class for each place in turn, and an example of that class.

    Args:
        x: float32[n, ...]. label: int64[n].
        held: examples that are held back from training.
    """

    def __init__(self, x: Array, label: Array, held: tuple[Array, Array] | None = None) -> None:
        self._x, self._label, self._held = torch.from_numpy(x), torch.from_numpy(label), held
        self._rows = [np.flatnonzero(label == k) for k in np.unique(label)]
        self.count = float(len(label))

    @property
    def size(self) -> int:
        """See ``Shard``."""
        return len(self._label)

    def apart(self) -> BalancedShard:
        """Hold the last fifth of each class out, at least one (``TorchTrainer.holding_back``)."""
        last = np.concatenate([rows[len(rows) - max(1, len(rows) // 5) :] for rows in self._rows])
        rest = np.setdiff1d(np.arange(self.size), last)
        x, label = self._x.numpy(), self._label.numpy()
        return BalancedShard(x[rest], label[rest], (x[last], label[last]))

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[Batch]]:
        """See ``Shard``. Rows of a class are dealt out in permutations one after another."""
        kinds, size = len(self._rows), max(1, training.batch // training.accumulate)
        each = -(-training.batch // kinds)
        dealt = [
            self._of_class(rows, steps, each, derive(key, "class", number)) for number, rows in enumerate(self._rows)
        ]
        order = row_order(kinds, steps, kinds, derive(key, "order"))
        for first in order:
            drawn = np.stack([next(one) for one in dealt], 1)  # [each, kinds]
            rows = drawn[:, first].reshape(-1)[: training.batch]
            yield [self._batch(rows[i : i + size]) for i in range(0, len(rows), size)]

    @staticmethod
    def _of_class(rows: Array, steps: int, each: int, key: Key) -> Iterator[Array]:
        """Deal out ``each`` rows of a class for each step. Few rows come several times."""
        for number, dealt in enumerate(row_order(len(rows), steps * each, 1, key)):
            if number % each == 0:
                taken: list[int] = []
            taken.append(int(rows[dealt[0]]))
            if len(taken) == each:
                yield np.array(taken)

    def _batch(self, rows: Array) -> Batch:
        at = torch.from_numpy(rows)
        return self._x[at], self._label[at]

    def records(self, rows: Array) -> list[Batch]:
        """See ``Shard``."""
        return [self._batch(np.array([int(r)])) for r in rows]

    def held_out(self) -> Iterator[Batch]:
        """Return the examples that are held back. Else a model is measured on the test (``VibrationTrainer``)."""
        if self._held is not None:
            yield torch.from_numpy(self._held[0]), torch.from_numpy(self._held[1])
