"""One model's loss on the held-out text of every site, as vectors that the pipeline of updates can sum, hide and noise.

    make_cross_site_trainer(recipe, recipe_dir, cache_dir)    # measures the recipe's model and trains nothing

A site contributes, and counts as one whatever it holds:

    loss      its mean loss in nats per token, over ``LARGEST``, at most 1
    losses    one-hot: its mean loss, in buckets of ``STEP`` nats

Guarantees: the L2 norm of a contribution is at most ``BOUND_L2``, so a clip at that norm changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.learn.text.statistics import one_hot_bucket
from edgewise.plan.recipe.recipe import Recipe

if TYPE_CHECKING:
    from edgewise.learn.text.trainer import TextTrainer

BUCKETS, STEP = 32, 0.5
LARGEST = BUCKETS * STEP  # nats per token
BOUND_L2 = sqrt(2.0)
PARTS = {"loss": ("devices", 0), "losses": ("devices", 0)}  # name -> what its values are shares of, and its round
CROSS_SITE = Spec.of([("loss", (1,), "float32"), ("losses", (BUCKETS,), "float32")])


def make_cross_site_trainer(
    recipe: Recipe, recipe_dir: Path, cache_dir: Path, device: DeviceId | None = None, worker: int = 0
) -> CrossSiteTrainer:
    """Make the trainer of a recipe's statistics. Arguments and errors are those of ``learn.text.trainer.make``."""
    from edgewise.learn.text import trainer  # It imports torch, which readers of the result do without.

    return CrossSiteTrainer(trainer.make(recipe, recipe_dir, cache_dir, device, worker))


class CrossSiteTrainer:
    """Measures a text trainer's model on each device. It has the engine's ``Trainer`` port."""

    def __init__(self, text: TextTrainer) -> None:
        self._text, self._initial = text, text.initial()
        self._known: dict[DeviceId, HeldOut] = {}
        self.spec = CROSS_SITE

    def initial(self) -> Vector:
        """Return zeros, float32[d]."""
        return np.zeros(self.spec.dim, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """List the devices, sorted."""
        return self._text.devices()

    def fit(self, request: FitRequest) -> Update:
        """Return a device's loss. Raises DataError(E-DEVICE-DATA) for a device without held-out text."""
        found = self.evaluate(request.device, request.params)
        loss = min(LARGEST, max(0.0, found.nll / found.tokens))
        mean = np.array([loss / LARGEST], np.float32)
        x = np.concatenate([mean, one_hot_bucket(int(loss / STEP), BUCKETS)])
        return Update(x, {"loss_first": loss, "loss_last": loss}, 1.0)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the recipe's model on a device, once. ``params`` hold no model here."""
        if device not in self._known:
            self._known[device] = self._text.evaluate(device, self._initial)
        return self._known[device]

    def sizes(self) -> Mapping[str, float]:
        """Return the sizes of the text trainer, with the losses as the trained vector."""
        return {**self._text.sizes(), "trainable": self.spec.dim}
