"""Blocks of one device, or of all together, as shards of a torch trainer (``learn.shards.Shard``).

Shape suffixes: N = blocks, B = blocks of a micro-batch, S = tokens per block (sequence_len + 1).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgewise.core.errors import DataError
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.row_order import row_order
from edgewise.learn.text.blocks import Blocks, predictions
from edgewise.plan.recipe.sections import TrainingSection


class TextShard:
    """One device's blocks, as memory maps.

    Args:
        eval_tokens: number of held-out predictions that are measured.
        pass_tokens: tokens of one forward pass of an evaluation.
    """

    def __init__(self, blocks: Blocks, eval_tokens: int, pass_tokens: int) -> None:
        self.blocks, self._eval_tokens, self._pass_tokens = blocks, eval_tokens, pass_tokens
        self.count = float(blocks.train_tokens)

    def apart(self) -> TextShard:
        """See ``TorchTrainer.holding_back``."""
        return TextShard(self.blocks.apart(), self._eval_tokens, self._pass_tokens)

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[tuple[Tensor, int]]]:
        """Iterate over the micro-batches of each step, from blocks in random order, pass after pass."""
        return training_batches(self.blocks.train_NS.__getitem__, len(self.blocks.train_NS), steps, training, key)

    @property
    def size(self) -> int:
        """The number of blocks of training text, which are the records of example-level privacy."""
        return len(self.blocks.train_NS)

    def records(self, rows: Array) -> list[tuple[Tensor, int]]:
        """Return these blocks, each as a batch of its own."""
        return [_loss_batch(self.blocks.train_NS[int(r) : int(r) + 1]) for r in rows]

    def held_out(self) -> Iterator[tuple[Tensor, int]]:
        """Iterate over batches of the first held-out predictions, ``eval_tokens`` at most."""
        held_NS, room = self.blocks.held_NS, self._eval_tokens
        size = max(1, self._pass_tokens // max(1, held_NS.shape[1] - 1))
        for at in range(0, len(held_NS), size):
            if room <= 0:
                return
            blocks_BS = np.array(held_NS[at : at + size])
            beyond_BT = np.cumsum(blocks_BS[:, 1:] >= 0).reshape(blocks_BS[:, 1:].shape) > room
            blocks_BS[:, 1:][beyond_BT] = np.minimum(blocks_BS[:, 1:], ~blocks_BS[:, 1:])[beyond_BT]
            batch = _loss_batch(blocks_BS)
            room -= batch[1]
            yield batch


class PooledShard:
    """The training blocks of all devices together, for the centralised comparison. Rows stay in their memory maps.

    Devices with unreadable or too little text are left out.
    """

    def __init__(self, open_device: Any, devices: Sequence[DeviceId]) -> None:
        self._open, self._devices, counts = open_device, [], []
        self.count = 0.0
        for device in devices:
            try:
                shard = open_device(device)
            except DataError:
                continue
            self._devices.append(device)
            counts.append(len(shard.blocks.train_NS))
            self.count += shard.count
        self._stops = list(accumulate(counts))

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[tuple[Tensor, int]]]:
        """Iterate over micro-batches as ``TextShard.batches``, from the rows of all devices."""
        return training_batches(self._pooled_rows, self.size, steps, training, key)

    def held_out(self) -> Iterator[tuple[Tensor, int]]:
        """Iterate over the hold-outs of all devices, one device after another."""
        for device in self._devices:
            yield from self._open(device).held_out()

    @property
    def size(self) -> int:
        """The number of blocks of all devices together."""
        return self._stops[-1] if self._stops else 0

    def _pooled_rows(self, rows: Array) -> Array:
        """Read rows of all devices together."""
        return np.stack([self._pooled_row(int(r)) for r in rows])

    def _pooled_row(self, row: int) -> Array:
        """Read a row of all devices together."""
        i = bisect_right(self._stops, row)
        start = self._stops[i - 1] if i else 0
        return self._open(self._devices[i]).blocks.train_NS[row - start]


def training_batches(
    take: Any, n: int, steps: int, training: TrainingSection, key: Key
) -> Iterator[list[tuple[Tensor, int]]]:
    """Yield the batches of each step."""
    return micro_batches(take, row_order(n, steps, training.batch, key), training)


def micro_batches(
    take: Any, rows_of_steps: Iterable[Array], training: TrainingSection
) -> Iterator[list[tuple[Tensor, int]]]:
    """Yield the micro-batches of each step from the numbers of its rows. ``take`` reads rows."""
    size = training.batch // training.accumulate
    for rows in rows_of_steps:
        blocks_BS = take(rows)
        yield [_loss_batch(blocks_BS[i : i + size]) for i in range(0, len(rows), size)]


def _loss_batch(blocks_BS: Array) -> tuple[Tensor, int]:
    """Make a batch for the loss, without the last columns in which nothing is predicted (padding)."""
    used = np.flatnonzero((blocks_BS[:, 1:] >= 0).any(0))
    stop = int(used[-1]) + 2 if len(used) else 2
    return torch.from_numpy(blocks_BS[:, :stop].astype(np.int64)), predictions(blocks_BS)
