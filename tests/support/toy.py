"""The toy federation of all tests, without torch: every device pulls a linear model towards its own hidden target.

loss(w) = mean((w - target)^2) / 2 + 1, whose gradient step is exact; held-out loss is the same function. Used as an
extension module (``EDGEWISE``), so that worker processes make it too. ``TOY_*`` variables script misbehaviour and the
speed that it claims. ``TOY_RANK`` makes the first segment a factor B of that many columns, ``TOY_ROWS`` a matrix of a
numbered layer. ``TOY_BLOCKS`` cuts it into
numbered blocks, and device i of several makes choice i of its request. Recipes: ``toy_recipe``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.keys import derive, generator, root
from edgewise.core.training import POOLED, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe.recipe import Recipe


class ToyTrainer:
    """``data.devices`` devices (default 6) and ``TOY_DIM`` parameters (default 50). ``TOY_NAMES`` names the devices."""

    def __init__(self, recipe: Recipe, names: Sequence[str] = ()) -> None:
        self._names = sorted(names or filter(None, os.environ.get("TOY_NAMES", "").split(",")))
        self._n = recipe.data.devices or 6
        self._dim = int(os.environ.get("TOY_DIM", "50"))
        self._seed = recipe.seed
        rank = int(os.environ.get("TOY_RANK", "0"))
        matrix = ("q.lora_B.weight", ((self._dim - 10) // rank, rank)) if rank else ("w", (self._dim - 10,))
        blocks = int(os.environ.get("TOY_BLOCKS", "0"))
        rows = int(os.environ.get("TOY_ROWS", "0"))
        matrix = ("layers.0.w.weight", (rows, (self._dim - 10) // rows)) if rows else matrix
        parts = [(f"layers.{i}.w", ((self._dim - 10) // blocks,)) for i in range(blocks)] or [matrix]
        self.spec = Spec.of([(*shape, "float32") for shape in [*parts, ("b", (10,))]])

    def initial(self) -> Vector:
        return np.zeros(self._dim, np.float32)

    def devices(self) -> Sequence[str]:
        return self._names or self._numbered()

    def _numbered(self) -> list[str]:
        return [f"d{i:05d}" for i in range(self._n)]

    def _target(self, device: str) -> Vector:
        if device == POOLED:
            return np.mean([self._target(d) for d in self.devices()], axis=0).astype(np.float32)
        return generator(derive(root(self._seed), "target", device)).normal(1.0, 0.5, self._dim).astype(np.float32)

    def fit(self, request: FitRequest) -> Update:
        if request.device in os.environ.get("TOY_FAIL", "").split(","):
            raise DataError("E-DEVICE-DATA", f"{request.device} has no text.")
        if delay := float(os.environ.get("TOY_SLEEP", "0")):
            time.sleep(delay)
        target, w, choice = self._target(request.device), request.params.copy(), None
        if request.choices:
            choice = self.blocks_that_fit(request.device) % len(request.choices)
            request = request.chosen(choice)
        trained, correction = request.rule.segments, request.correction
        frozen = [s for s in self.spec.segments if trained and s.name not in trained]
        losses = []
        for step in range(request.rule.steps):
            noise = generator(derive(request.key, step)).normal(0, 0.01, self._dim).astype(np.float32)
            losses.append(float(np.mean((w - target) ** 2)) / 2 + 1)
            w -= np.float32(request.rule.lr) * ((w - target) + noise + correction.pull * (w - request.params))
            if correction.shift is not None:
                w -= np.float32(request.rule.lr) * correction.shift
            for s in frozen:
                w[s.start : s.stop] = request.params[s.start : s.stop]
        x = w - request.params
        if request.device in os.environ.get("TOY_NAN", "").split(","):
            x[0] = np.nan
        count = 100.0 + 10 * self.devices().index(request.device) if request.device != POOLED else 1.0
        return Update(x, {"loss_first": losses[0], "loss_last": losses[-1]}, count, choice=choice)

    def blocks_that_fit(self, device: str) -> int:
        return self.devices().index(device)

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        return HeldOut(100 * (float(np.mean((params - self._target(device)) ** 2)) / 2 + 1), 100)

    def sizes(self) -> Mapping[str, float]:
        return {"parameters": self._dim, "trainable": self._dim, "memory_bytes": 8.0 * self._dim}

    def step_s(self) -> float:
        return float(os.environ.get("TOY_STEP_S", "0"))

    def describe(self) -> dict[str, object]:
        return {"model": "toy", "fingerprint": f"toy-{self._n}-{self._dim}-{self._seed}"}


EDGEWISE = Extension(trainer=ToyTrainer)
