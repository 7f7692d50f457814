"""One's own training loop and one's own metrics, in a ``TorchTrainer``.

    trainer.own = OwnWork(train_data, held_data, loop=mine, metrics={"accuracy": accuracy})

The loop trains in place of ``learn.train.fit``; the metrics are measured beside the held-out loss. What they find is
noted, and who runs the trainer takes the notes (``engine.trainer.NotesMetrics``): they travel by no frame.
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
Loop = Callable[[nn.Module, Any, "LocalRound"], Any]  # (model, a device's data, round) -> (model or update, n, metrics)
TRAINING, HELD = "training", "held_out"


@dataclass
class LocalRound:
    """What a loop is told of the round that it trains for.

    Attributes:
        number: from 0. device: whose data it is. steps, epochs, lr, batch: as the recipe has them. ``epochs`` is 0
            where the recipe counts steps. seed: of this device and round; torch's own generator is seeded as well.
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
        """Add what the strategy adds to gradients (FedProx, SCAFFOLD, FedDyn): between ``backward`` and the step."""
        self.corrected = True
        self._correct()


@dataclass
class OwnWork:
    """``train_data``, ``held_data``: a device's data as loop and metrics take it. See the module."""

    train_data: Callable[[DeviceId], Any]
    held_data: Callable[[DeviceId], Any]
    loop: Loop | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def fit(self, model: nn.Module, flat: Flat, request: FitRequest, batch: int) -> Update:
        """Train by the loop, from ``request.params``.

        Raises TrainingError: E-TRAIN for what a loop may not give, E-NAN where its update is not finite.
        """
        assert self.loop is not None
        flat.write(request.params)
        flat.zero_grad()
        model.train()
        told = LocalRound(
            request.round, request.device, request.rule.steps, request.rule.epochs, request.rule.lr, batch,
            word(request.key), lambda: _correct(flat, request),
        )  # fmt: skip
        data = self.train_data(request.device)
        with seeded(request.key), flat.only(request.rule.segments):
            given = self.loop(model, data, told)
        if (request.correction.pull or request.correction.shift is not None) and not told.corrected:
            what = "the strategy adds to gradients, and the training loop never called round.correct()."
            raise TrainingError("E-TRAIN", what, "call it after backward and before the optimizer's step.")
        x, count, metrics = _taken(given, flat, request.params)
        for s in flat.spec.segments:
            if request.rule.segments and s.name not in request.rule.segments:
                x[s.start : s.stop] = 0.0
        if not np.isfinite(x).all():
            raise TrainingError("E-NAN", "the training loop's update is not finite.", "lower training.lr.")
        values = {name: _number(value, name) for name, value in metrics.items()}
        self.notes += [Note(TRAINING, request.round, request.device, name, value) for name, value in values.items()]
        if "loss" not in values:
            what = f"the metrics of the training loop are {', '.join(values) or 'none'}, and `loss` is not among them."
            raise TrainingError("E-TRAIN", what, 'return (model, n, {"loss": mean training loss, ...}).')
        head = {"loss_first": values.get("loss_first", values["loss"]), "loss_last": values["loss"]}
        return Update(x, head, count)

    def measure(self, model: nn.Module, device: DeviceId) -> None:
        """Note one's own metrics of the model on a device's held-out data. Raises TrainingError(E-NAN)."""
        if not self.metrics:
            return
        data = self.held_data(device)
        model.eval()
        with torch.no_grad():
            found = {name: _number(metric(model, data), name) for name, metric in self.metrics.items()}
        self.notes += [Note(HELD, -1, device, name, value) for name, value in found.items()]


def _taken(given: Any, flat: Flat, start: Vector) -> tuple[Vector, float, Mapping[str, Any]]:
    """(update float32[d], weight, metrics) of what a loop returned."""
    if not (isinstance(given, tuple) and len(given) == 3 and isinstance(given[2], Mapping)):
        what = f"the training loop returned {_said(given)}."
        raise TrainingError("E-TRAIN", what, "return (model or update, n, metrics).")
    trained, count, metrics = given
    n = _number(count, "n")
    if n < 0:
        raise TrainingError("E-TRAIN", f"the training loop returned n = {n:g}.", "n is a weight: 0 or more.")
    if isinstance(trained, nn.Module):
        return flat.gathered(dict(trained.named_parameters())) - start, n, metrics
    if isinstance(trained, Mapping):
        lacking = [s.name for s in flat.spec.segments if s.name not in trained]
        if lacking or len(trained) != len(flat.spec.segments):
            what = f"the training loop's update names {len(trained)} tensors, the model has {len(flat.spec.segments)}."
            raise TrainingError("E-TRAIN", what, f"give all by name{f'; {lacking[0]} is missing' if lacking else ''}.")
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
        what = f"{name!r:.60} is {type(value).__name__}, which is no number."
        raise TrainingError("E-TRAIN", what, "return one number.") from None
    if not math.isfinite(found):
        raise TrainingError("E-NAN", f"{name!r:.60} is {found}.", "return a finite number.")
    return found


def _said(given: Any) -> str:
    return f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"


def _correct(flat: Flat, request: FitRequest) -> None:
    pull, shift = request.correction.pull, request.correction.shift
    with torch.no_grad():
        for s, p in flat.pairs():
            if p.grad is None:
                continue
            if pull:
                p.grad.add_(p - torch.from_numpy(request.params[s.start : s.stop]).view(s.shape), alpha=pull)
            if shift is not None:
                p.grad.add_(torch.from_numpy(shift[s.start : s.stop]).view(s.shape))
