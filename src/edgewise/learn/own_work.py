"""A user's own training loop and metrics in a ``TorchTrainer``.

    trainer.own = OwnWork(train_data, held_data, loop=my_loop, metrics={"accuracy": accuracy})

The loop trains in place of ``learn.train.fit``. The metrics are measured together with the held-out loss. Their values
become notes, which the driver of the trainer collects (``engine.trainer.NotesMetrics``). No frame carries them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import TrainingError
from edgewise.core.keys import word
from edgewise.core.training import DeviceId, FitRequest, Note, Update
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.seeded import seeded

Metric = Callable[[nn.Module, Any], Any]  # (model, a device's held-out data) -> a number
Loop = Callable[[nn.Module, Any, "LocalRound"], Any]  # (model, device data, round) -> (model or update, n, metrics)
TRAINING, HELD = "training", "held_out"


@dataclass
class LocalRound:
    """The round that a training loop trains for.

    Attributes:
        number: number of the round, from 0.
        device: the device that trains.
        steps, epochs, lr, batch: the recipe's values. ``epochs`` is 0 where the recipe counts steps.
        seed: seed of this device and round. torch's own generator is seeded as well.
    """

    number: int
    device: DeviceId
    steps: int
    epochs: float
    lr: float
    batch: int
    seed: int
    _correct: Callable[[], None] = field(repr=False, default=lambda: None)
    corrected: bool = field(default=False, repr=False)

    def correct(self) -> None:
        """Add the strategy's terms to the gradients (FedProx, SCAFFOLD, FedDyn). Call it after ``backward``."""
        self.corrected = True
        self._correct()


@dataclass
class OwnWork:
    """A user's training loop and metrics, and the data that they receive. See the module.

    Attributes:
        train_data: device -> its training data, for the loop.
        held_data: device -> its held-out data, for the metrics.
        loop: the training loop. None trains with ``learn.train.fit``.
        metrics: name -> metric.
        notes: measured values that nobody has collected yet.
    """

    train_data: Callable[[DeviceId], Any]
    held_data: Callable[[DeviceId], Any]
    loop: Loop | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def fit(self, model: nn.Module, flat: Flat, request: FitRequest, batch: int) -> Update:
        """Train with the loop, from ``request.params``.

        Raises:
            TrainingError: E-TRAIN for a result that a loop may not return, E-NAN where its update is not finite.
        """
        assert self.loop is not None
        flat.write(request.params)
        flat.zero_grad()
        model.train()
        local = LocalRound(
            request.round, request.device, request.rule.steps, request.rule.epochs, request.rule.lr, batch,
            word(request.key), lambda: _correct(flat, request),
        )  # fmt: skip
        data = self.train_data(request.device)
        with seeded(request.key), flat.only(request.rule.segments):
            result = self.loop(model, data, local)
        if (request.correction.pull or request.correction.shift is not None) and not local.corrected:
            what = "the strategy adds terms to gradients, but the training loop never called round.correct()."
            raise TrainingError("E-TRAIN", what, "call it after backward and before the optimizer's step.")
        x, count, metrics = _taken(result, flat, request.params)
        for s in flat.spec.segments:
            if request.rule.segments and s.name not in request.rule.segments:
                x[s.start : s.stop] = 0.0
        if not np.isfinite(x).all():
            raise TrainingError("E-NAN", "the training loop's update is not finite.", "lower training.lr.")
        values = {name: _number(value, name) for name, value in metrics.items()}
        self.notes += [Note(TRAINING, request.round, request.device, name, value) for name, value in values.items()]
        if "loss" not in values:
            what = (
                f"the training loop returned the metrics {', '.join(values) or 'none'}, and `loss` is not among them."
            )
            raise TrainingError("E-TRAIN", what, 'return (model, n, {"loss": mean training loss, ...}).')
        head = {"loss_first": values.get("loss_first", values["loss"]), "loss_last": values["loss"]}
        return Update(x, head, count)

    def measure(self, model: nn.Module, device: DeviceId) -> None:
        """Measure the metrics on a device's held-out data and note them. Raises TrainingError(E-TRAIN, E-NAN)."""
        if not self.metrics:
            return
        data = self.held_data(device)
        model.eval()
        with torch.no_grad():
            found = {name: _number(metric(model, data), name) for name, metric in self.metrics.items()}
        self.notes += [Note(HELD, None, device, name, value) for name, value in found.items()]


def _taken(result: Any, flat: Flat, start: Vector) -> tuple[Vector, float, Mapping[str, Any]]:
    """Convert a loop's result to an update (float32[d]), a weight and metrics."""
    if not (isinstance(result, tuple) and len(result) == 3 and isinstance(result[2], Mapping)):
        what = f"the training loop returned {_described(result)}."
        raise TrainingError("E-TRAIN", what, "return (model or update, n, metrics).")
    trained, count, metrics = result
    n = _number(count, "n")
    if n < 0:
        what = f"the training loop returned n = {n:g}, which cannot be a weight."
        raise TrainingError("E-TRAIN", what, "return n = 0 or more.")
    if isinstance(trained, nn.Module):
        return flat.gathered(dict(trained.named_parameters())) - start, n, metrics
    if isinstance(trained, Mapping):
        missing = [s.name for s in flat.spec.segments if s.name not in trained]
        if missing or len(trained) != len(flat.spec.segments):
            what = f"the training loop's update names {len(trained)} tensors, the model has {len(flat.spec.segments)}."
            raise TrainingError("E-TRAIN", what, f"give all by name{f'; {missing[0]} is missing' if missing else ''}.")
        parts = [np.asarray(_array(trained[s.name]), np.float32).reshape(-1) for s in flat.spec.segments]
        return _sized(np.concatenate(parts), flat), n, metrics
    return _sized(np.array(_array(trained), np.float32).reshape(-1), flat), n, metrics


def _sized(x: Vector, flat: Flat) -> Vector:
    if x.shape != (flat.spec.dim,):
        what = f"the update of the training loop has {x.size} numbers, the model {flat.spec.dim}."
        raise TrainingError("E-TRAIN", what, "return the model, or the change of every trained parameter.")
    return x


def _array(x: Any) -> Any:
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


def _number(value: Any, name: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        what = f"{name!r:.60} is {type(value).__name__}, not a number."
        raise TrainingError("E-TRAIN", what, "return one number.") from None
    if not math.isfinite(found):
        raise TrainingError("E-NAN", f"{name!r:.60} is {found}.", "return a finite number.")
    return found


def _described(result: Any) -> str:
    return f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"


def _correct(flat: Flat, request: FitRequest) -> None:
    pull, shift = request.correction.pull, request.correction.shift
    with torch.no_grad():
        for s, p in flat.pairs():
            if p.grad is None:
                continue
            if pull:
                p.grad.add_(
                    p - torch.from_numpy(request.params[s.start : s.stop]).view(s.shape).to(p.device), alpha=pull
                )
            if shift is not None:
                p.grad.add_(torch.from_numpy(shift[s.start : s.stop]).view(s.shape).to(p.device))
