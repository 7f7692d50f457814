"""A trainer, a codec and a strategy of one's own: devices find the mean of their readings, without any text.

The recipe beside this file names them. `edgewise sim recipe.toml --extension own_parts` plays it here, and
`edgewise run submit recipe.toml --extension own_parts` on devices whose owners allow this package by its digest.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Gt, Le

from edgewise.core import require
from edgewise.core.errors import DataError
from edgewise.core.part import Doc, part
from edgewise.core.stage import Stage
from edgewise.core.training import POOLED, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.plan.catalogue import Extension
from edgewise.strategies.base import State, Strategy

SENSORS, FAR = 3, 1.0


class Readings:
    """Fit the mean of each sensor's readings: loss(w) = mean |w - readings|^2 / 2.

    In a simulation ``data.path`` is a folder with a file for each device. On an enrolled device it is the file that its
    owner's policy names, whatever the device is called.
    """

    def __init__(self, recipe: Any) -> None:
        self._path = Path(recipe.data.path)
        self.spec = Spec.of([("mean", (SENSORS,), "float32")])

    def initial(self) -> Vector:
        return np.zeros(SENSORS, np.float32)

    def devices(self) -> Sequence[str]:
        files = self._path.glob("*.csv") if self._path.is_dir() else ()
        return sorted(path.stem for path in files)

    def fit(self, request: FitRequest) -> Update:
        readings, w = self._readings(request.device), request.params.copy()
        losses, far = [], float((np.abs(readings - w) > FAR).any(axis=1).mean())
        for _ in range(request.rule.steps):
            losses.append(float(np.square(w - readings).mean()) / 2)
            w -= np.float32(request.rule.lr) * (w - readings.mean(axis=0))
        head = {"loss_first": losses[0], "loss_last": losses[-1], "far": far}
        return Update(w - request.params, head, float(len(readings)))

    def metrics(self) -> Sequence[str]:
        return ("far",)  # share of the readings that are far from the round's model

    def evaluate(self, device: str, params: Vector) -> HeldOut:
        readings = self._readings(device)
        return HeldOut(float(np.square(params - readings).sum()) / 2, readings.size)

    def sizes(self) -> Mapping[str, float]:
        return {"parameters": SENSORS, "trainable": SENSORS, "memory_bytes": 8.0 * SENSORS}

    def _readings(self, device: str) -> Vector:
        files = [self._path] if self._path.is_file() else sorted(self._path.glob("*.csv"))
        chosen = [file for file in files if self._path.is_file() or device in (file.stem, POOLED)]
        if not chosen:
            raise DataError("E-DEVICE-DATA", "there are no readings.")
        return np.concatenate([np.loadtxt(file, np.float32, delimiter=",", ndmin=2) for file in chosen])


@part
def coarse(step: Annotated[float, Gt(0), Doc("what coordinates are multiples of")] = 0.001) -> Stage:
    """Round every coordinate to the nearest multiple of a step."""
    name = f"coarse({step:g})"

    def infer(space: Any) -> Any:
        require.real(space, name)
        longer = step / 2
        return space.but(l2=space.l2 + longer * space.dim**0.5, linf=space.linf + longer, unbiased=False)

    def encode(payload: Any, memory: Any, space: Any, turn: Any) -> Any:
        return payload.but(body=(np.rint(payload.body / step) * step).astype(np.float32)), memory

    def decode(payload: Any, space: Any, turn: Any) -> Any:
        return payload

    def says(before: Any, after: Any) -> str:
        return f"rounds every coordinate to a multiple of {step:g}"

    return Stage(name, infer, encode, decode, says, pointwise=True)


@part
def careful(share: Annotated[float, Gt(0), Le(1), Doc("of the mean update that the model moves by")] = 0.5) -> Strategy:
    """Move the model by a share of the mean update."""

    def init(params: Vector) -> State:
        return State(params, {})

    def apply(state: State, aggregate: Any) -> State:
        return State(state.params + np.float32(share) * aggregate.mean, {}, state.round + 1)

    return Strategy(f"careful({share:g})", f"moves by {share:g} of the mean update", init, apply)


EDGEWISE = Extension(parts=(coarse, careful), trainer=Readings)
