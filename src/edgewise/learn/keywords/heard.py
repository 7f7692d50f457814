"""What the trainers of keywords share: everybody's clips as a model reads them, and the measures on the test.

heard = heard_clips(recipe, recipe_dir)
heard.shards["jarvis-00"], heard.measured("jarvis-00", scores)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core import vector
from edgewise.core.errors import DataError, TrainingError
from edgewise.core.keys import Key, derive, root
from edgewise.core.training import POOLED, DeviceId, HeldOut, Note
from edgewise.core.vector import Array, Vector
from edgewise.learn.keywords.clips import Clips, DealtClips, dealt, of_one, public_of, read
from edgewise.learn.keywords.detection import false_negatives
from edgewise.learn.keywords.noise import noisy, readable
from edgewise.learn.keywords.shards import ClipShard
from edgewise.learn.text.cache import write_atomically
from edgewise.plan.recipe.keywords import KeywordsSection
from edgewise.plan.recipe.recipe import Recipe

MISSED, HELD = "false_negatives", "held_out"
SCORED_AT_ONCE = 256  # clips of a forward pass
KEPT = 4  # models whose scores of the test are remembered
Score = Callable[[Vector, Array], Array]  # params and spectrograms -> logits


def heard_clips(
    recipe: Recipe, recipe_dir: Path, device: DeviceId | None = None, public_only: bool = False
) -> HeardClips:
    """Read and share out the clips of a recipe.

    Args:
        recipe_dir: the folder where ``data.path`` starts.
        device: an enrolled device, whose own file ``data.path`` is. None: the recipe's file has the clips of all.
        public_only: of the recipe's file take the public clips alone.
    Raises:
        DataError: as ``clips.read``, ``clips.dealt``, ``clips.of_one`` and ``clips.public_of``.
    """
    assert isinstance(recipe.data.path, str)
    clips, key = read(recipe_dir / recipe.data.path, recipe.keywords.words), derive(root(recipe.seed), "data")
    if device is not None:
        found = of_one(clips, device)
    else:
        found = (public_of if public_only else dealt)(clips, recipe.keywords, key)
    return HeardClips(recipe, clips.fingerprint(), found)


class HeardClips:
    """Clips of the devices, of the public and of the test, with noise where the recipe adds it.

    Attributes:
        key: of everything that the seed decides about keywords.
        names: the keywords. shape: frames and bands of a clip. public: the public clips.
        shards: device -> its clips, and POOLED -> all of them.
    """

    def __init__(self, recipe: Recipe, fingerprint: str, found: DealtClips) -> None:
        self.section, self.key, self.fingerprint = recipe.keywords, derive(root(recipe.seed), "keywords"), fingerprint
        section, key = self.section, self.key
        self.names, keywords = found.public.names, len(found.public.names)
        public = _heard(found.public, section, section.public_noise_db, derive(key, "noise", "public"))
        own = {
            device: _heard(held, section, section.device_noise_db, derive(key, "noise", device))
            for device, held in found.devices.items()
        }
        self._test = _heard(found.test, section, section.device_noise_db, derive(key, "test"))
        self.shape = self._test[0].shape[1:]
        self.shards = {d: ClipShard(held, public, keywords, section.rehearsal) for d, held in own.items()}
        if own:
            everything = (np.concatenate([held[i] for held in own.values()]) for i in (0, 1))
            self.shards[POOLED] = ClipShard((next(everything), next(everything)), public, keywords, section.rehearsal)
        self.public = ClipShard(public, public, keywords, 0.0)
        self._keywords_of = {d: np.unique(held[1]) for d, held in own.items()}
        self._scores: dict[bytes, Array] = {}
        self._notes: list[Note] = []

    @property
    def devices(self) -> tuple[DeviceId, ...]:
        """The devices, sorted."""
        return tuple(sorted(self._keywords_of))

    def base(self, cache_dir: Path, dim: int, computed_by: str, train: Callable[[], Vector]) -> Vector:
        """Take the model that rounds begin with from the cache, or train it.

        Args:
            computed_by: names the program whose arithmetic ``train`` uses.
        """
        facts = [self.fingerprint, self.section.model_dump(mode="json"), self.key.hex(), computed_by]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        at = cache_dir / f"keywords-{name}.f32"
        if at.is_file() and at.stat().st_size == 4 * dim:
            return np.fromfile(at, np.float32)
        base = train()
        write_atomically(at, lambda f: f.write(bytes(vector.to_bytes(base))))
        return base

    def scores(self, params: Vector, score: Score) -> Array:
        """Score the clips of the test: float32[n, keywords], logits. Those of the last models are remembered."""
        digest = hashlib.sha256(vector.to_bytes(params)).digest()
        if digest not in self._scores:
            x, starts = self._test[0], range(0, len(self._test[1]), SCORED_AT_ONCE)
            found = np.concatenate([score(params, x[at : at + SCORED_AT_ONCE]) for at in starts])
            while len(self._scores) >= KEPT:
                del self._scores[next(iter(self._scores))]
            self._scores[digest] = found
        return self._scores[digest]

    def measured(self, device: DeviceId, params: Vector, score: Score) -> HeldOut:
        """Measure the loss of the scores of a device's keywords on the test, and note its false negatives.

        Without clips for the test, it counts none and notes nothing.

        Raises:
            DataError: E-DEVICE-DATA for a device that the file does not have.
            TrainingError: E-NAN for scores that are not finite.
        """
        if device not in self._keywords_of:
            raise DataError("E-DEVICE-DATA", f"there is no device {device!r:.60}.")
        if not len(self._test[1]):
            return HeldOut(0.0, 0)
        scores, label, found = self.scores(params, score), self._test[1], self._keywords_of[device]
        if not np.isfinite(scores).all():
            what = "the model's scores are not finite."
            raise TrainingError("E-NAN", what, "lower training.lr or the server's step.")
        missed = [false_negatives(scores, label, k, self.section.false_alarms) for k in found]
        self._notes.append(Note(HELD, None, device, MISSED, float(np.mean(missed))))
        signs = np.where(label[:, None] == found, 1.0, -1.0)
        return HeldOut(float(np.logaddexp(0.0, -signs * scores[:, found].astype(np.float64)).sum()), signs.size)

    def noted(self) -> list[Note]:
        """Return the false negatives measured since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def facts(self) -> dict[str, Any]:
        """Return what a run's record says of the clips, as plain JSON."""
        counts = {d: int(shard.count) for d, shard in self.shards.items() if d != POOLED}
        return {"fingerprint": self.fingerprint, "keywords": list(self.names), "devices": counts}


def _heard(clips: Clips, section: KeywordsSection, ratio_db: float, key: Key) -> tuple[Array, Array]:
    """Return spectrograms as a model reads them, with noise where the recipe adds it, and their labels."""
    powers = clips.powers()
    if section.noise:
        powers = noisy(powers, ratio_db, section.noise_spread_db, key)
    return readable(powers), clips.label
