"""A trainer of a large model that does nothing: it makes a new update for each request and keeps none."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgewise.core.training import HeldOut, Update
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Extension

DIM = 4_000_000


class Fresh:
    """Three devices, ``DIM`` coordinates."""

    def __init__(self, _: object) -> None:
        self.spec = Spec.of([("w", (DIM,), "float32")])

    def initial(self) -> Any:
        return np.zeros(DIM, np.float32)

    def devices(self) -> list[str]:
        return ["d0", "d1", "d2"]

    def fit(self, request: Any) -> Update:
        x = np.random.default_rng(int.from_bytes(request.key[:4], "little")).random(DIM, np.float32)
        return Update(x, {"loss_first": 1.0, "loss_last": 1.0}, 8.0)

    def evaluate(self, device: str, params: Any) -> HeldOut:
        return HeldOut(1.0, 1)

    def sizes(self) -> dict[str, float]:
        return {}


EDGEWISE = Extension(trainer=Fresh)
