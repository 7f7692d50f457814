"""The data of one device as batches: the port ``Shard``, and shards of tensors.

shard = TensorShard((x, y))
for micro_batches in shard.batches(steps=10, training=recipe.training, key=key):
    ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from edgewise.core.errors import DataError
from edgewise.core.keys import Key
from edgewise.core.training import POOLED, DeviceId
from edgewise.core.vector import Array
from edgewise.learn.row_order import row_order
from edgewise.learn.train import Batch
from edgewise.plan.recipe.sections import TrainingSection


class Shard(Protocol):
    """The data of one device."""

    @property
    def count(self) -> float:
        """The device's natural weight: its training tokens, or examples. A device with 0 cannot train."""
        ...

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterable[Sequence[Batch]]:
        """Iterate over the micro-batches of each of ``steps`` steps. They depend on the arguments only."""
        ...

    def held_out(self) -> Iterable[Batch]:
        """Iterate over batches that are never trained on. There are none without a hold-out."""
        ...

    @property
    def size(self) -> int:
        """The number of records, the unit of example-level privacy."""
        ...

    def records(self, rows: Array) -> Sequence[Batch]:
        """Return these records, each as a batch of its own."""
        ...


class TensorShard:
    """A device's examples as tensors with rows first. A batch is the tuple of their rows.

    Args:
        train, held: equally long tensors, for example ``(x, y)``.
        shuffle: True takes rows in random order by key. False takes them in order, from the start in every round.
    """

    def __init__(self, train: Sequence[Tensor], held: Sequence[Tensor] = (), shuffle: bool = True) -> None:
        self._train, self._held, self._shuffle = tuple(train), tuple(held), shuffle
        self.count = float(len(self._train[0]))

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[tuple[Tensor, ...]]]:
        """See ``Shard``."""
        n, size = len(self._train[0]), max(1, training.batch // training.accumulate)
        for step, rows in enumerate(row_order(n, steps, training.batch, key) if self._shuffle else range(steps)):
            if self._shuffle:
                chosen = tuple(t[torch.from_numpy(rows)] for t in self._train)
            else:
                at = step * training.batch % n
                chosen = tuple(t[at : at + training.batch] for t in self._train)
            yield [tuple(t[i : i + size] for t in chosen) for i in range(0, len(chosen[0]), size)]

    def apart(self) -> TensorShard:
        """Hold the last fifth of the rows out, at least one, in place of the held-out ones (``holding_back``)."""
        first = max(0, len(self._train[0]) - max(1, len(self._train[0]) // 5))
        return TensorShard([t[:first] for t in self._train], [t[first:] for t in self._train], self._shuffle)

    @property
    def size(self) -> int:
        """See ``Shard``."""
        return len(self._train[0])

    def records(self, rows: Array) -> list[tuple[Tensor, ...]]:
        """See ``Shard``."""
        return [tuple(t[int(r) : int(r) + 1] for t in self._train) for r in rows]

    def held_out(self) -> Iterator[tuple[Tensor, ...]]:
        """See ``Shard``."""
        if self._held:
            yield self._held


def shard_by_device(shards: Mapping[DeviceId, Shard]) -> Callable[[DeviceId], Shard]:
    """Make a function that returns the shard of a device. It raises DataError(E-DEVICE-DATA) where there is none."""

    def shard(device: DeviceId) -> Shard:
        if device in shards:
            return shards[device]
        if device == POOLED:
            fix = f"add a shard of all devices' examples as shards[{POOLED!r}], or set compare.centralised = false."
            raise DataError("E-DEVICE-DATA", "there is no shard with all training data together.", fix)
        raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")

    return shard
