"""The vectors of a run: what a device sends is one vector, and so is what it is given, whatever the strategy adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Spec, Vector
from edgewise.strategies.base import State
from edgewise.strategies.client import Client


@dataclass(frozen=True)
class VectorLayout:
    """Where the model, and what a strategy sends and gives beside it, lie in vectors.

    ``model``: of the d trained parameters. What stands beside it has the same segments, as ``"c/layers.0.weight"``.
    """

    model: Spec
    client: Client

    @cached_property
    def sent(self) -> Spec:
        """Of what a device sends: the update, and ``Client.sends``. The model's own where that is nothing."""
        return self._with(self.client.sends)

    @cached_property
    def given(self) -> Spec:
        """Of what devices are given: the model, and ``Client.given``. The model's own where that is nothing."""
        return self._with(self.client.given)

    def outgoing(self, update: Vector, beside: Mapping[str, Vector]) -> Vector:
        """What a device sends, float32 of ``sent``: ``update`` itself where there is nothing beside it."""
        return _joined(update, [beside[name] for name in self.client.sends])

    def broadcast(self, state: State) -> Vector:
        """What devices are given of a state, float32 of ``given``: the parameters themselves where that is all."""
        return _joined(state.params, [state.slots[name] for name in self.client.given])

    def received(self, x: Vector) -> tuple[Vector, dict[str, Vector]]:
        """The model, and by name what is beside it, from a vector of ``given``; views."""
        return self._parts(x, self.client.given)

    def aggregated(self, whole: Aggregate) -> Aggregate:
        """An aggregate of vectors of ``sent`` with the update and what is beside it apart."""
        if not self.client.sends:
            return whole
        mean, beside = self._parts(whole.mean, self.client.sends)
        return replace(whole, mean=mean, beside=beside)

    def _with(self, names: Sequence[str]) -> Spec:
        own = [(s.name, s.shape, s.dtype) for s in self.model.segments]
        more = [(f"{name}/{s.name}", s.shape, "float32") for name in names for s in self.model.segments]
        return Spec.of([*own, *more]) if more else self.model

    def _parts(self, x: Vector, names: Sequence[str]) -> tuple[Vector, dict[str, Vector]]:
        if not names:
            return x, {}
        d = self.model.dim
        return x[:d], {name: x[d * i : d * (i + 1)] for i, name in enumerate(names, 1)}


def _joined(first: Vector, more: Sequence[Vector]) -> Vector:
    return np.concatenate([first, *more]) if more else first
