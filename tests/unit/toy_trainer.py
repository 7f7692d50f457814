"""An extension whose trainer is arithmetic: each device pulls the vector towards a point of its own. For fast runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgewise.core.training import POOLED, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.plan.catalogue import Extension

DIM, NAMES = 64, ("a", "b", "c", "d", "e")


class ToyTrainer:
    """The Trainer port."""

    spec = Spec.of([("w", (DIM,), "float32")])

    def __init__(self, _: Any) -> None:
        common = np.linspace(-1, 1, DIM, dtype=np.float32)
        self._goals = {d: common + np.float32(0.3 * (i - 2)) for i, d in enumerate(NAMES)}
        self._goals[POOLED] = common

    def initial(self) -> Vector:
        return np.zeros(DIM, np.float32)

    def devices(self) -> Sequence[str]:
        return NAMES

    def fit(self, request: FitRequest) -> Update:
        goal, x = self._goals[request.device], np.array(request.params)
        first = float(np.square(x - goal).mean())
        for _ in range(request.rule.steps):
            x += np.float32(0.2) * (goal - x)
        return Update(x - request.params, {"loss_first": first, "loss_last": float(np.square(x - goal).mean())}, 100.0)

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        return HeldOut(100.0 * (1.0 + float(np.square(params - self._goals[device]).mean())), 100)

    def sizes(self) -> Mapping[str, float]:
        return {"parameters": 2.0 * DIM, "trainable": DIM, "memory_bytes": 1e6, "step_s": 0.25}

    def describe(self) -> dict[str, Any]:
        return {"model": "toy", "parameters": 2 * DIM, "fingerprint": "00" * 32, "devices": dict.fromkeys(NAMES, 100)}


EDGEWISE = Extension(trainer=ToyTrainer)
RECIPE = """
schema = 1
name = "toy"
privacy = "none"
[round]
rounds = 3
[training]
local_steps = 2
[eval]
every = 1
"""
