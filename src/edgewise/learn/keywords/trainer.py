"""Make the trainer of a recipe's keywords. It has the engine's ``Trainer`` port.

trainer = make(recipe, recipe_dir, cache_dir)
trainer.initial()              # float32[d], trained on the public clips
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive
from edgewise.core.training import DeviceId, HeldOut, Note
from edgewise.core.vector import Array, Vector
from edgewise.learn.computing import computing
from edgewise.learn.hardware import chosen
from edgewise.learn.keywords.heard import HeardClips, heard_clips
from edgewise.learn.keywords.network import KeywordLoss, KeywordNet
from edgewise.learn.keywords.shards import Batch, ClipShard
from edgewise.learn.seeded import seeded
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import fit
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import TrainingSection

Tensors = tuple[Tensor, Tensor]


def make(
    recipe: Recipe, recipe_dir: Path, cache_dir: Path, worker: int = 0, device: DeviceId | None = None
) -> KeywordTrainer:
    """Make the trainer of a recipe's keywords.

    Args:
        recipe_dir: the folder where ``data.path`` starts.
        cache_dir: folder for the trained base. Processes of a run share it. It may be deleted between runs.
        worker: number of this worker process, which decides its GPU.
        device: an enrolled device, whose own file ``data.path`` is. It trains no base, since a server sends the first
            model.
    Raises:
        DataError: E-DATA-* as ``clips``. RecipeError: E-HARDWARE.
    """
    base = None if device is not None else cache_dir
    return KeywordTrainer(recipe, heard_clips(recipe, recipe_dir, device), base, worker)


class TensorClips:
    """The clips of a device as tensors: the port ``learn.shards.Shard``."""

    def __init__(self, clips: ClipShard) -> None:
        self._clips, self.count, self.size = clips, clips.count, clips.size

    def apart(self) -> TensorClips:
        """Hold the last fifth of the own clips out."""
        return TensorClips(self._clips.apart())

    def batches(self, steps: int, training: TrainingSection, key: Key) -> Iterator[list[Tensors]]:
        """See ``Shard``."""
        for micro in self._clips.batches(steps, training, key):
            yield [_tensors(batch) for batch in micro]

    def records(self, rows: Array) -> list[Tensors]:
        """See ``Shard``."""
        return [_tensors(batch) for batch in self._clips.records(rows)]

    def held_out(self) -> Iterator[Tensors]:
        """See ``Shard``."""
        return map(_tensors, self._clips.held_out())


class KeywordTrainer(TorchTrainer):
    """The trainer of a model that spots keywords.

    A device's loss and false negatives are measured on the clips of the test, for the keywords that it holds clips of.
    The test is the same for all, and nobody trains on it.
    """

    def __init__(self, recipe: Recipe, heard: HeardClips, cache_dir: Path | None, worker: int = 0) -> None:
        section = recipe.keywords
        with seeded(derive(heard.key, "model")):
            frames, bands = heard.shape
            model = KeywordNet(bands, frames, len(heard.names), section)
        loss, processor = KeywordLoss(section.positive_weight), chosen(recipe.engine.device, worker)
        shards = {device: TensorClips(shard) for device, shard in heard.shards.items()}
        super().__init__(model, loss, shards, recipe.training, processor=processor)
        self._heard, self._section, self._holding = heard, section, False
        if cache_dir is not None:
            self._initial = heard.base(cache_dir, self.spec.dim, f"torch {torch.__version__}", self._trained_base)

    def _trained_base(self) -> Vector:
        """Train the model that rounds begin with, on the public clips."""
        section, key, public = self._section, self._heard.key, TensorClips(self._heard.public)
        training = base_training(self.training, section.base_batch)
        rule = LocalRule(steps=section.base_steps, lr=section.base_lr)
        with computing("the public clips"):
            batches = map(self._moved, public.batches(section.base_steps, training, derive(key, "base")))
            return self._initial + fit(self.model, self.loss, batches, self.flat, self._initial, rule, training, key).x

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Train inside without the last fifth of a device's clips, and measure on them."""
        with super().holding_back():
            self._holding = True
            try:
                yield
            finally:
                self._holding = False

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the loss on the test's clips of the device's keywords' scores, and note its false negatives.

        Inside ``holding_back`` the loss of all scores is measured on the clips that are held back.

        Raises:
            DataError: E-DEVICE-DATA for a device that the file does not have.
            TrainingError: E-NAN, E-TRAIN as ``fit``.
        """
        return super().evaluate(device, params) if self._holding else self._heard.measured(device, params, self._score)

    def scores(self, params: Vector) -> Array:
        """Score the clips of the test: float32[n, keywords], logits."""
        return self._heard.scores(params, self._score)

    def _score(self, params: Vector, x: Array) -> Array:
        with computing("the test"), torch.no_grad():
            self.flat.write(params)
            self.model.eval()
            (batch,) = self._moved([torch.from_numpy(x)])
            found: Array = self.model(batch).cpu().numpy()
            return found

    def noted(self) -> list[Note]:
        """Return the false negatives measured since the last call."""
        return self._heard.noted()

    def describe(self) -> dict[str, Any]:
        """Describe the model, its parameters, the keywords, and each device's number of clips."""
        sizes = self.sizes()
        return {
            "model": "KeywordNet", "hardware": self.processor.type,
            "parameters": int(sizes["parameters"]), "trainable": int(sizes["trainable"]), **self._heard.facts(),
        }  # fmt: skip


def base_training(training: TrainingSection, batch: int) -> TrainingSection:
    """Return the settings of local training with those of the base: AdamW, ``batch`` clips at once."""
    return training.model_copy(update={"optimizer": "adamw", "batch": batch, "accumulate": 1})


def _tensors(batch: Batch) -> Tensors:
    """Make tensors that share the arrays' memory."""
    return torch.from_numpy(batch[0]), torch.from_numpy(batch[1])
