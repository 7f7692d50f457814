"""Online EWC on a device whose text arrives over time: a penalty for weights that earlier windows needed.

When a device first trains on a window after v, with w the round's model and B blocks of its window v:

    F  <-  keep F + mean_B (grad loss(w; B))^2         importance of each weight, elementwise
    w* <-  w                                           the model when v was over
    and in every step  g += penalty F (w - w*)

F and w* stay on the device (``core.training.Update.personal``). The engine commits them with the contribution, so a
killed run goes on with them. They take 8 bytes a parameter, however many windows there are.

Source: Schwarz et al. 2018, "Progress & Compress", arXiv:1805.06370, section 3, after Kirkpatrick et al. 2017,
arXiv:1612.00796. There F is an expectation over the model's own predictions. Here it is over the text itself, one
block at a time (the empirical Fisher information), and each device has its own.

Shape suffixes: N = blocks, S = tokens per block, D = trainable coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.keys import derive, generator
from edgewise.core.safe_repr import outline
from edgewise.core.training import FitRequest
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import moved
from edgewise.learn.text.shards import TextShard
from edgewise.learn.text.stream import StreamShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import Batch, Loss, Penalty, mean_loss
from edgewise.plan.recipe.drift import DriftSection

WINDOW, IMPORTANCE, ANCHOR = "window", "importance", "anchor"  # names of what a device keeps


class RoundWork(NamedTuple):
    """The work of a round for drift: what the device keeps after it, and the penalty in its steps, or None."""

    memory: Mapping[str, Vector] = MappingProxyType({})
    penalty: Penalty | None = None

    __repr__ = outline


class DriftWork:
    """What a device does about drift before it trains."""

    def __init__(self, section: DriftSection) -> None:
        self._section = section

    def before(self, trainer: TorchTrainer, shard: StreamShard, request: FitRequest) -> RoundWork:
        """Bring what the device keeps up to the window that it trains on now.

        Edge cases: in a window before the last one, as where a round is played again, nothing changes. A device whose
            text of its last window is gone measures no importance on it.
        """
        if not self._section.penalty:
            return RoundWork()
        before = request.personal
        window = shard.at(request.device, request.round, request.secret).number
        last = int(before[WINDOW][0]) if WINDOW in before else window
        memory = dict(before) or {WINDOW: np.array([window], np.int64)}
        if window > last:
            found = self._importance(trainer, shard.window(last), request)
            if (old := before.get(IMPORTANCE)) is not None:
                found += np.float32(self._section.penalty_keep) * old
            memory = {WINDOW: np.array([window], np.int64), IMPORTANCE: found, ANCHOR: request.params.copy()}
        if IMPORTANCE not in memory:
            return RoundWork(memory)
        return RoundWork(memory, Penalty(np.float32(self._section.penalty) * memory[IMPORTANCE], memory[ANCHOR]))

    def _importance(self, trainer: TorchTrainer, text: TextShard, request: FitRequest) -> Vector:
        """Measure importance on some blocks of a window, drawn by the device's secret."""
        n = min(self._section.penalty_blocks, text.size)
        rows = generator(derive(request.secret, "importance")).choice(text.size, n, replace=False) if n else []
        records = (moved(record, trainer.processor) for record in text.records(np.sort(rows).astype(np.int64)))
        trainer.flat.write(request.params)
        return importance(trainer.model, trainer.loss, trainer.flat, records)


def importance(model: nn.Module, loss: Loss, flat: Flat, records: Iterable[Batch]) -> Vector:
    """Compute the mean over records of the squared gradient, float32[d]. Zeros where there is no record.

    The model has the weights to measure at. It is in evaluation mode here, so that nothing is drawn.
    """
    model.eval()
    total_D, n = torch.zeros_like(flat.g_D), 0
    for record in records:
        flat.zero_grad()
        mean, _ = mean_loss(loss, model, record)
        mean.backward()
        total_D.addcmul_(flat.g_D, flat.g_D)
        n += 1
    flat.zero_grad()
    return np.array((total_D / max(1, n)).cpu().numpy(), np.float32)
