"""The part that both trainers of a split model share: layouts, the population, and measurements of the joined model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from edgewise.core.keys import Key
from edgewise.core.parts import ModelParts
from edgewise.core.training import DeviceId, HeldOut
from edgewise.core.vector import Spec, Vector
from edgewise.engine.split_rest import Sessions
from edgewise.engine.trainer import Registered
from edgewise.learn.models.part_memory import check_part_memory, forecast_part_memory
from edgewise.learn.text.trainer import TextTrainer
from edgewise.plan.recipe.recipe import Recipe


class JoinedTrainer(ABC):
    """All of the ``Trainer`` port but ``fit``, over one part of another trainer's model.

    Args:
        inner: the trainer of the whole model. text: the same, as the text trainer that it is.
        parts: ``parts.shared`` is the layout of the run's vector.
        sessions: of devices, with the rest of the round's model.
    Raises:
        ModelError: E-MEMORY as ``learn.models.part_memory.check_part_memory``.
    """

    def __init__(
        self, inner: Registered, text: TextTrainer, parts: ModelParts, recipe: Recipe, sessions: Sessions
    ) -> None:
        self.inner, self.parts, self.sessions = inner, parts, sessions
        self.own_names = tuple(s.name for s in parts.own.segments)
        self._text, self._split, self._training, self._recipe = text, recipe.split, recipe.training, recipe
        check_part_memory(recipe, text.devices(), text.loaded.folder, text.autocast)
        self._start, self.rest_start = parts.split(inner.initial())

    @property
    def spec(self) -> Spec:
        """The layout of the run's vector."""
        return self.parts.shared

    def initial(self) -> Vector:
        """Return the run's vector before round 0."""
        return self._start.copy()

    def devices(self) -> Sequence[DeviceId]:
        """Return the population, sorted."""
        return self._text.devices()

    @abstractmethod
    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join a vector of the run with the other part of the round's model. ``private`` is not read."""

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the held-out loss of the joined model, for a vector of the run or of the whole layout."""
        return self.inner.evaluate(device, self._measured(params))

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """Continue a held-out text as the inner trainer does, with a vector as of ``evaluate``."""
        return self._text.sample(device, self._measured(params), key)

    def sizes(self) -> Mapping[str, float]:
        """Forecast sizes as the inner trainer. ``trainable`` counts both parts. Memory is the device part's."""
        needed = forecast_part_memory(self._recipe, self._text.loaded.folder, self._text.autocast).total
        return {**self._text.sizes(), "memory_bytes": needed}

    def _measured(self, params: Vector) -> Vector:
        return params if params.shape == (self.parts.whole.dim,) else self.whole(params)
