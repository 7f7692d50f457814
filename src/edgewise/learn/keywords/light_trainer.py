"""A trainer of keywords without torch, for devices that have no room for it.

    trainer = make(recipe, recipe_dir, cache_dir)
    update = trainer.fit(request)

It computes with numpy (``arrays``), takes the steps of AdamW or SGD, and has the engine's ``Trainer`` port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive
from edgewise.core.training import Correction, DeviceId, FitRequest, HeldOut, Note, Update
from edgewise.core.vector import Array, Spec, Vector
from edgewise.learn.keywords.arrays import layout, loss_gradient, scored, untrained, views
from edgewise.learn.keywords.heard import HeardClips, heard_clips
from edgewise.learn.keywords.shards import ClipShard
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import TrainingSection

BETAS, EPSILON = (0.9, 0.999), 1e-8
_LOWER = "lower training.lr, or set training.clip_grad."


def make(recipe: Recipe, recipe_dir: Path, cache_dir: Path, device: DeviceId | None = None) -> LightTrainer:
    """Make the trainer of a recipe's keywords. Arguments and errors are those of ``trainer.make``."""
    return LightTrainer(recipe, heard_clips(recipe, recipe_dir, device), None if device is not None else cache_dir)


class LightTrainer:
    """The trainer of a model that spots keywords, in numpy. See ``trainer.KeywordTrainer`` for what it measures.

    Args:
        cache_dir: folder for the trained base. None: no base is trained, since a server sends the first model.

    Guarantees: ``fit`` is a function of the request alone, with the same bits in any process of one machine.
    """

    def __init__(self, recipe: Recipe, heard: HeardClips, cache_dir: Path | None) -> None:
        self._heard, self._section, self._training = heard, recipe.keywords, recipe.training
        frames, bands = heard.shape
        self._spec = layout(bands, frames, len(heard.names), recipe.keywords)
        self._initial = untrained(self._spec, derive(heard.key, "model"))
        if cache_dir is not None:
            self._initial = heard.base(cache_dir, self._spec.dim, f"numpy {np.__version__}", self._trained_base)

    @property
    def spec(self) -> Spec:
        """The layout of the parameters."""
        return self._spec

    def initial(self) -> Vector:
        """Return the parameters before round 0: float32[d]."""
        return self._initial.copy()

    def devices(self) -> Sequence[DeviceId]:
        """Return the population, sorted."""
        return self._heard.devices

    def records(self, device: DeviceId) -> int:
        """Count a device's clips. Raises DataError(E-DEVICE-DATA)."""
        return self._shard(device).size

    def fit(self, request: FitRequest) -> Update:
        """Train on a device's clips.

        Raises:
            DataError: E-DEVICE-DATA for a device that the file does not have.
            TrainingError: E-NAN where a loss or the update is not finite, E-TRAIN for a contrast of representations.
        """
        if request.correction.contrast is not None:
            what = "the strategy contrasts representations of models, and this trainer gives none."
            raise TrainingError("E-TRAIN", what, "use strategy fedavg or fedprox.")
        shard, key = self._shard(request.device), derive(request.key, "batches")
        with np.errstate(over="ignore", invalid="ignore"):  # What is not finite is refused.
            w, first, last = self._trained(shard, request.params, request.rule, self._training, key, request.correction)
        return Update(w - request.params, {"loss_first": first, "loss_last": last}, shard.count)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the loss on the test's clips, and note the false negatives. Raises as ``HeardClips.measured``."""
        return self._heard.measured(device, params, self._score)

    def noted(self) -> list[Note]:
        """Return the false negatives measured since the last call."""
        return self._heard.noted()

    def sizes(self) -> Mapping[str, float]:
        """Forecast ``parameters``, ``trainable`` and ``memory_bytes``: weights, gradient, moments, and the update."""
        d = float(self.spec.dim)
        return {"parameters": d, "trainable": d, "memory_bytes": 4.0 * d * 6}

    def describe(self) -> dict[str, Any]:
        """Describe the model, its parameters, the keywords, and each device's number of clips."""
        d = self.spec.dim
        facts = {"model": "KeywordNet", "hardware": "cpu", "parameters": d, "trainable": d}
        return facts | self._heard.facts()

    def _shard(self, device: DeviceId) -> ClipShard:
        if device not in self._heard.shards:
            raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")
        return self._heard.shards[device]

    def _score(self, params: Vector, x: Array) -> Array:
        return scored(views(params, self.spec), x, self._section.heads)[0]

    def _trained_base(self) -> Vector:
        """Train the model that rounds begin with, on the public clips."""
        section, key = self._section, self._heard.key
        training = self._training.model_copy(
            update={"optimizer": "adamw", "batch": section.base_batch, "accumulate": 1}
        )
        rule = LocalRule(steps=section.base_steps, lr=section.base_lr)
        batches = derive(key, "base")
        return self._trained(self._heard.public, self._initial, rule, training, batches, Correction())[0]

    def _trained(
        self,
        shard: ClipShard,
        start: Vector,
        rule: LocalRule,
        training: TrainingSection,
        key: Key,
        correction: Correction,
    ) -> tuple[Vector, float, float]:
        """Take steps from a model. Returns the model after them, and the mean losses of the first and last quarter.

        A step is that of ``learn.train.fit``: the strategy's terms, the clip of the gradient, AdamW or SGD.
        """
        w, moving = start.copy(), self._moving(rule.segments)
        weights, state = views(w, self.spec), [np.zeros_like(w) for _ in range(2)]
        losses: list[float] = []
        for step, micro in enumerate(shard.batches(rule.steps, training, key), 1):
            g, total, clips = np.zeros_like(w), 0.0, sum(len(x) for x, _ in micro)
            gradient = views(g, self.spec)
            for x, y in micro:
                scores, pullback = scored(weights, x, self._section.heads)
                loss, d_scores = loss_gradient(scores, y, self._section.positive_weight)
                share = np.float32(len(x) / clips)
                for name, found in pullback(d_scores * share).items():
                    gradient[name] += found
                total += loss * len(x) / clips
            if not np.isfinite(total):
                raise TrainingError("E-NAN", f"the loss is {total} at local step {step}.", _LOWER)
            losses.append(total)
            if correction.pull:
                g += np.float32(correction.pull) * (w - start)
            if correction.shift is not None:
                g += correction.shift
            g *= moving
            if training.clip_grad:
                g *= np.float32(min(1.0, training.clip_grad / (float(np.linalg.norm(g)) + 1e-6)))
            _take_step(w, g, state, training, rule.lr, step, moving)
        if not np.isfinite(w).all():
            raise TrainingError("E-NAN", f"the update is not finite after local step {rule.steps}.", _LOWER)
        if not losses:
            return w, 0.0, 0.0
        quarter = max(1, len(losses) // 4)
        return w, float(np.mean(losses[:quarter])), float(np.mean(losses[-quarter:]))

    def _moving(self, names: Sequence[str]) -> Array:
        """Mark the coordinates that train: float32[d] of 0 and 1."""
        marks = np.zeros(self.spec.dim, np.float32)
        for s in self.spec.segments:
            marks[s.start : s.stop] = not names or s.name in names
        return marks


def _take_step(
    w: Vector, g: Vector, state: list[Vector], training: TrainingSection, lr: float, number: int, moving: Array
) -> None:
    """Take one step of AdamW or SGD in place (``learn.train.Optimizer`` has the formulas)."""
    decay, (m, v) = training.weight_decay, state
    if training.optimizer == "sgd":
        if decay:
            g += np.float32(decay) * w * moving
        if training.momentum:
            m *= np.float32(training.momentum)
            m += g
            g = m
        w -= np.float32(lr) * g
        return
    if decay:
        w -= np.float32(lr * decay) * w * moving
    m += np.float32(1.0 - BETAS[0]) * (g - m)
    v += np.float32(1.0 - BETAS[1]) * (g * g - v)
    root = np.sqrt(v) / np.float32((1.0 - BETAS[1] ** number) ** 0.5) + np.float32(EPSILON)
    w -= np.float32(lr / (1.0 - BETAS[0] ** number)) * m / root
