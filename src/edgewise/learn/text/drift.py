"""A device whose text arrives over time: a penalty for weights that earlier windows needed, and an alarm for drift.

*Online EWC.* When a device first trains on a window after v, with w the round's model and B blocks of its window v:

    F  <-  keep F + mean_B (grad loss(w; B))^2         importance of each weight, elementwise
    w* <-  w                                           the model when v was over
    and in every step  g += penalty F (w - w*)

F and w* stay on the device (``core.training.Update.personal``). The engine commits them with the contribution, so a
killed run goes on with them. They take 8 bytes a parameter, however many windows there are.

*Page-Hinkley.* Before a device trains in a round, it measures the mean loss L on held-out blocks of its window and of
earlier windows, under the round's model w and under the model w_0 before round 0:

    x   = (L(w; window) - L(w_0; window)) - (L(w; earlier) - L(w_0; earlier))
    m_t = m_{t-1} + x_t - mean_t - tolerance,   alarm where m_t - min m > threshold

x is how much less training has helped on the new text. The difference to w_0 cancels that one text is harder than
another. After an alarm the test starts anew, and the device is in alarm for ``alarm_rounds`` rounds. Held-out text
decides about an alarm, and never trains.

Sources: Page 1954, doi:10.1093/biomet/41.1-2.100, section 2, as a test for a rise of the mean. Schwarz et al. 2018,
"Progress & Compress", arXiv:1805.06370, section 3, after Kirkpatrick et al. 2017, arXiv:1612.00796. There F is an
expectation over the model's own predictions. Here it is over the text itself, one block at a time (the empirical Fisher
information), and each device has its own.

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
from edgewise.core.metric import IN_ALARM
from edgewise.core.safe_repr import outline
from edgewise.core.training import FitRequest
from edgewise.core.vector import Array, Vector
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import moved
from edgewise.learn.text.shards import TextShard
from edgewise.learn.text.stream import StreamShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import Batch, Loss, Penalty, mean_loss
from edgewise.plan.recipe.drift import DriftSection

WINDOW, IMPORTANCE, ANCHOR, WATCH = "window", "importance", "anchor", "watch"  # names of what a device keeps


class RoundWork(NamedTuple):
    """A device's work for drift in a round: what it keeps after it, the penalty in its steps or None, and metrics."""

    memory: Mapping[str, Array] = MappingProxyType({})
    penalty: Penalty | None = None
    head: Mapping[str, float] = MappingProxyType({})

    __repr__ = outline


class PageHinkley(NamedTuple):
    """State of a Page-Hinkley test: number and mean of the values, m and the least m. ``until``: end of the alarm."""

    count: float = 0.0
    mean: float = 0.0
    m: float = 0.0
    least: float = 0.0
    until: float = 0.0

    def after(self, x: float, round: int, section: DriftSection) -> PageHinkley:
        """Take one value in a round."""
        count = self.count + 1
        mean = self.mean + (x - self.mean) / count
        m = self.m + x - mean - section.tolerance
        least = min(self.least, m)
        if m - least > section.threshold:
            return PageHinkley(until=float(round + section.alarm_rounds))
        return PageHinkley(count, mean, m, least, self.until)


class DriftWork:
    """Work of a device about drift, before it trains."""

    def __init__(self, section: DriftSection) -> None:
        self._section, self.alarms = section, section.alarm

    def before(self, trainer: TorchTrainer, shard: StreamShard, request: FitRequest) -> RoundWork:
        """Bring what the device keeps up to the window that it trains on now.

        Edge cases: in a window before the last one, as where a round is played again, nothing changes. A device whose
            text of its last window is gone measures no importance on it. One without held-out text on both sides takes
            no value for its alarm.
        """
        if self._section.stays is None:
            return RoundWork()
        window = shard.at(request.device, request.round, request.secret).number
        memory: dict[str, Array] = {}
        penalty, head = None, {}
        if self._section.penalty:
            memory, penalty = self._penalised(trainer, shard, window, request)
        if self._section.alarm:
            watch = PageHinkley(*request.personal[WATCH].tolist()) if WATCH in request.personal else PageHinkley()
            if (x := self._compared(trainer, shard, window, request)) is not None:
                watch = watch.after(x, request.round, self._section)
            memory[WATCH] = np.array(watch, np.float64)
            head = {IN_ALARM: float(request.round < watch.until)}
        return RoundWork(memory, penalty, head)

    def _penalised(
        self, trainer: TorchTrainer, shard: StreamShard, window: int, request: FitRequest
    ) -> tuple[dict[str, Array], Penalty | None]:
        """Return the importance and the anchor that the device keeps, and the penalty of this round."""
        memory = {name: x for name, x in request.personal.items() if name != WATCH}
        last = int(memory[WINDOW][0]) if memory else window
        memory = memory or {WINDOW: np.array([window], np.int64)}
        if window > last:
            found = self._importance(trainer, shard.window(last), request)
            if (old := memory.get(IMPORTANCE)) is not None:
                found += np.float32(self._section.penalty_keep) * old
            memory = {WINDOW: np.array([window], np.int64), IMPORTANCE: found, ANCHOR: request.params.copy()}
        if IMPORTANCE not in memory:
            return memory, None
        return memory, Penalty(np.float32(self._section.penalty) * memory[IMPORTANCE], memory[ANCHOR])

    def _compared(self, trainer: TorchTrainer, shard: StreamShard, window: int, request: FitRequest) -> float | None:
        """Compute x of this module's head. None where one side has no held-out text."""
        numbers, stops = shard.blocks.windows_V3[:, 0].tolist(), shard.blocks.windows_V3[:, 2].tolist()
        at = numbers.index(window)
        start, rng = stops[at - 1] if at else 0, generator(derive(request.secret, "compared"))
        sides = []
        for rows in (range(start, stops[at]), range(start)):
            chosen = rng.choice(rows, min(self._section.alarm_blocks, len(rows)), replace=False) if rows else []
            batches = shard.held_blocks(np.sort(chosen).astype(np.int64))
            sides.append([moved(batch, trainer.processor) for batch in batches])
        losses = []
        for params in (request.params, trainer.initial()):
            trainer.flat.write(params)
            losses.append([evaluate(trainer.model, trainer.loss, side) for side in sides])
        if not all(measured.tokens for measured in losses[0]):
            return None
        (new, old), (new_0, old_0) = ([measured.nll / measured.tokens for measured in pair] for pair in losses)
        return (new - new_0) - (old - old_0)

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
