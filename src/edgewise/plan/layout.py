"""The layout of a run's vectors. A device sends one vector and receives one, whatever the strategy adds to them."""

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
    """The places of the model, and of a strategy's vectors beside it, in the vectors that travel.

    Attributes:
        model: layout of the d trained parameters. A strategy's vector has the same segments, with its name before them
            (``"c/layers.0.weight"``).
        client: the strategy's client half. ``sends`` and ``given`` name its vectors in each direction.
    """

    model: Spec
    client: Client

    @cached_property
    def sent(self) -> Spec:
        """The layout of a device's upload: the update, then ``Client.sends``."""
        return self._spec_with(self.client.sends)

    @cached_property
    def given(self) -> Spec:
        """The layout of a device's download: the model, then ``Client.given``."""
        return self._spec_with(self.client.given)

    def outgoing(self, update: Vector, beside: Mapping[str, Vector]) -> Vector:
        """Join an update and the strategy's vectors into float32 of ``sent``, without a copy if alone."""
        return _joined_parts(update, [beside[name] for name in self.client.sends])

    def broadcast(self, state: State) -> Vector:
        """Join a state's parameters and the strategy's vectors into float32 of ``given``, without a copy if alone."""
        return _joined_parts(state.params, [state.slots[name] for name in self.client.given])

    def received(self, x: Vector) -> tuple[Vector, dict[str, Vector]]:
        """Split a vector of ``given`` into the model and, by name, the vectors beside it. They are views."""
        return self._named_parts(x, self.client.given)

    def aggregated(self, whole: Aggregate) -> Aggregate:
        """Split an aggregate of vectors of ``sent`` into the update and the vectors beside it."""
        if not self.client.sends:
            return whole
        mean, beside = self._named_parts(whole.mean, self.client.sends)
        return replace(whole, mean=mean, beside=beside)

    def _spec_with(self, names: Sequence[str]) -> Spec:
        own = [(s.name, s.shape, s.dtype) for s in self.model.segments]
        more = [(f"{name}/{s.name}", s.shape, "float32") for name in names for s in self.model.segments]
        return Spec.of([*own, *more]) if more else self.model

    def _named_parts(self, x: Vector, names: Sequence[str]) -> tuple[Vector, dict[str, Vector]]:
        """Split a vector into the model's part and the named parts after it."""
        if not names:
            return x, {}
        d = self.model.dim
        return x[:d], {name: x[d * i : d * (i + 1)] for i, name in enumerate(names, 1)}


def _joined_parts(first: Vector, more: Sequence[Vector]) -> Vector:
    """Join a vector and the parts after it."""
    return np.concatenate([first, *more]) if more else first
