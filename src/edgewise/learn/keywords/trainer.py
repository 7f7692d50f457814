"""Make the trainer of a recipe's keywords. It has the engine's ``Trainer`` port.

trainer = make(recipe, recipe_dir, cache_dir)
trainer.initial()              # float32[d], trained on the public clips
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgewise.core import vector
from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, root
from edgewise.core.training import POOLED, DeviceId, HeldOut, Note
from edgewise.core.vector import Array, Vector
from edgewise.learn.computing import computing
from edgewise.learn.hardware import chosen
from edgewise.learn.keywords import clips as files
from edgewise.learn.keywords.clips import Clips, DealtClips
from edgewise.learn.keywords.detection import false_negatives
from edgewise.learn.keywords.network import KeywordLoss, KeywordNet
from edgewise.learn.keywords.noise import noisy, readable
from edgewise.learn.keywords.shards import KeywordShard
from edgewise.learn.own_work import HELD
from edgewise.learn.seeded import seeded
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import fit
from edgewise.plan.recipe.keywords import KeywordsSection
from edgewise.plan.recipe.recipe import Recipe

MISSED = "false_negatives"
SCORED_AT_ONCE = 256  # clips of a forward pass
KEPT = 4  # models whose scores of the test are remembered


def make(recipe: Recipe, recipe_dir: Path, cache_dir: Path, worker: int = 0) -> KeywordTrainer:
    """Make the trainer of a recipe's keywords.

    Args:
        recipe_dir: the folder where ``data.path`` starts.
        cache_dir: folder for the trained base. Processes of a run share it. It may be deleted between runs.
        worker: number of this worker process, which decides its GPU.
    Raises:
        DataError: E-DATA-* as ``clips``. RecipeError: E-HARDWARE.
    """
    key = root(recipe.seed)
    path = recipe.data.path if isinstance(recipe.data.path, str) else recipe.data.path[0]
    read = files.read(recipe_dir / path)
    shared = files.dealt(read, recipe.keywords, derive(key, "data"))
    return KeywordTrainer(recipe, read.fingerprint(), shared, cache_dir, worker)


class KeywordTrainer(TorchTrainer):
    """The trainer of a model that spots keywords.

    A device's loss and false negatives are measured on the clips of the test, for the keywords that it holds clips of.
    The test is the same for all, and nobody trains on it.
    """

    def __init__(self, recipe: Recipe, fingerprint: str, dealt: DealtClips, cache_dir: Path, worker: int) -> None:
        section, key = recipe.keywords, derive(root(recipe.seed), "keywords")
        self._section, self._fingerprint, self.names = section, fingerprint, dealt.public.names
        public = _heard(dealt.public, section, section.public_noise_db, derive(key, "noise", "public"))
        own = {
            device: _heard(held, section, section.device_noise_db, derive(key, "noise", device))
            for device, held in dealt.devices.items()
        }
        self._test = _heard(dealt.test, section, section.device_noise_db, derive(key, "test"))
        keywords = len(self.names)
        shards = {d: KeywordShard(held, public, keywords, section.rehearsal) for d, held in own.items()}
        everything = tuple(np.concatenate([held[i] for held in own.values()]) for i in (0, 1))
        shards[POOLED] = KeywordShard(everything, public, keywords, section.rehearsal)
        self._keywords_of = {d: np.unique(held[1]) for d, held in own.items()}
        _, frames, bands = self._test[0].shape
        with seeded(derive(key, "model")):
            model = KeywordNet(bands, frames, keywords, section)
        loss, processor = KeywordLoss(section.positive_weight), chosen(recipe.engine.device, worker)
        super().__init__(model, loss, shards, recipe.training, processor=processor)
        self._scores: dict[bytes, Array] = {}
        self._notes: list[Note] = []
        self._holding = False
        self._counts = {d: int(s.count) for d, s in shards.items() if d != POOLED}
        self._initial = self._base(KeywordShard(public, public, keywords, 0.0), cache_dir, key)

    def _base(self, public: KeywordShard, cache_dir: Path, key: Key) -> Vector:
        """Train the model that rounds begin with, on public clips, or take it from the cache."""
        facts = [self._fingerprint, self._section.model_dump(mode="json"), key.hex(), torch.__version__]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        at = cache_dir / f"keywords-{name}.f32"
        if at.is_file() and at.stat().st_size == 4 * self.spec.dim:
            return np.fromfile(at, np.float32)
        section = self._section
        training = self.training.model_copy(update={"optimizer": "adamw", "batch": section.base_batch, "accumulate": 1})
        rule = LocalRule(steps=section.base_steps, lr=section.base_lr)
        with computing("the public clips"):
            batches = public.batches(section.base_steps, training, derive(key, "base"))
            found = fit(self.model, self.loss, map(self._moved, batches), self.flat, self._initial, rule, training, key)
        base = self._initial + found.x
        write_atomically(at, lambda f: f.write(bytes(vector.to_bytes(base))))
        return base

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
        if device not in self._keywords_of:
            raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")
        if self._holding:
            return super().evaluate(device, params)
        scores, label, found = self.scores(params), self._test[1], self._keywords_of[device]
        if not np.isfinite(scores).all():
            raise TrainingError(
                "E-NAN", "the model's scores are not finite.", "lower training.lr or the server's step."
            )
        missed = [false_negatives(scores, label, k, self._section.false_alarms) for k in found]
        self._notes.append(Note(HELD, None, device, MISSED, float(np.mean(missed))))
        signs = np.where(label[:, None] == found, 1.0, -1.0)
        return HeldOut(float(np.logaddexp(0.0, -signs * scores[:, found].astype(np.float64)).sum()), signs.size)

    def scores(self, params: Vector) -> Array:
        """Score the clips of the test: float32[n, keywords], logits. Those of the last models are remembered."""
        digest = hashlib.sha256(vector.to_bytes(params)).digest()
        if digest not in self._scores:
            found = []
            with computing("the test"), torch.no_grad():
                self.flat.write(params)
                self.model.eval()
                for at in range(0, len(self._test[1]), SCORED_AT_ONCE):
                    (batch,) = self._moved([torch.from_numpy(self._test[0][at : at + SCORED_AT_ONCE])])
                    found.append(self.model(batch).cpu().numpy())
            while len(self._scores) >= KEPT:
                del self._scores[next(iter(self._scores))]
            self._scores[digest] = np.concatenate(found)
        return self._scores[digest]

    def noted(self) -> list[Note]:
        """Return the false negatives measured since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def describe(self) -> dict[str, Any]:
        """Describe the model, its parameters, the keywords, and each device's number of clips."""
        sizes = self.sizes()
        return {
            "model": "KeywordNet", "hardware": self.processor.type,
            "parameters": int(sizes["parameters"]), "trainable": int(sizes["trainable"]),
            "fingerprint": self._fingerprint, "keywords": list(self.names), "devices": self._counts,
        }  # fmt: skip


def _heard(clips: Clips, section: KeywordsSection, ratio_db: float, key: Key) -> tuple[Array, Array]:
    """Return spectrograms as the model reads them, with noise where the recipe adds it, and their labels."""
    powers = clips.powers()
    if section.noise:
        powers = noisy(powers, ratio_db, section.noise_spread_db, key)
    return readable(powers), clips.label
