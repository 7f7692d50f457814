"""A trainer whose devices keep a part of the model (FedPer, FedRep, dual LoRA). The rest travels as a smaller vector.

    trainer = parted(trainer, parts, recipe)            # trainer.spec is the layout of the shared part
    trainer.keeps.whole(shared, private)                # float32[d], the model of a device

It works with every trainer that trains the named segments of a request only (``core.training.FitRequest``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive
from edgewise.core.parts import ModelParts
from edgewise.core.training import Correction, DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine.trainer import Registered
from edgewise.plan.personal import PART
from edgewise.plan.recipe.recipe import Recipe


def parted(trainer: Registered, parts: ModelParts, recipe: Recipe) -> Registered:
    """Wrap a trainer of the whole model into one whose vector is the shared part. It trains one device at a time."""
    made = PartedTrainer(trainer, parts, recipe)
    return Registered(
        made,
        describes=made,
        counts=trainer.counts,
        measures=trainer.measures,
        computes=trainer.computes,
        continues=None if trainer.continues is None else made,
        reads=trainer.reads,
        remarks=trainer.remarks,
        metrics=trainer.metrics,
        reports=trainer.reports,
        holds_back=trainer.holds_back,
        keeps=made,
    )


class PartedTrainer:
    """The ``Trainer`` port over the shared part of another trainer's model.

        fedper   one training of both parts from (w, p)
        fedrep   ``personal.steps`` steps of p alone, then the round's steps of w alone
        dual     as fedrep, where p is an adapter beside that of w

    w is the round's model. p is the device's own part after its last contribution that the server used. A device
    without one begins with the own part of the model before round 0, which the seed decides.

    ``fit`` returns the change of w in ``Update.x``, and p in ``Update.personal``. ``evaluate`` and ``sample`` take a
    vector of the shared part or of the whole model. To a shared part they add the own part of the seed, never that of
    a device, so no measurement that a server asks for depends on a device's own part.

    Args:
        inner: the trainer of the whole model.
        parts: both parts of its layout.
        recipe: the recipe with ``personal.method`` of ``PARTED``.
    Source: Arivazhagan et al. 2019, arXiv:1912.00818 (FedPer). Collins et al. 2021, arXiv:2102.07078 (FedRep).
    """

    def __init__(self, inner: Registered, parts: ModelParts, recipe: Recipe) -> None:
        self.inner, self.parts = inner, parts
        self.alternates = recipe.personal.method in ("fedrep", "dual")
        self._wanted, self._batch = recipe.personal, recipe.training.batch
        self._max_local_steps = recipe.training.max_local_steps
        self.own_names = tuple(s.name for s in parts.own.segments)
        self._shared_names = tuple(s.name for s in parts.shared.segments)
        self._start, self._own_start = parts.split(inner.initial())

    @property
    def spec(self) -> Spec:
        """The layout of the shared part."""
        return self.parts.shared

    def initial(self) -> Vector:
        """Return the shared part of the model before round 0."""
        return self._start.copy()

    def devices(self) -> Sequence[DeviceId]:
        """Return the population, sorted."""
        return self.inner.trainer.devices()

    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join a shared part with a device's own part to float32[d].

        Args:
            private: the device's private vectors. Without an own part among them, that of the seed is taken.
        """
        return self.parts.join(shared, (private or {}).get(PART, self._own_start))

    def fit(self, request: FitRequest) -> Update:
        """Train one device in a round. Raises as the inner trainer, and TrainingError(E-TRAIN) for a pull (FedPer).

        A pull of the strategy would also hold the own part where it was.
        """
        correction = request.correction
        if correction.pull and not self.alternates:
            what = "the strategy pulls devices to the round's model, and would hold their own parts back too."
            raise TrainingError("E-TRAIN", what, 'write personal.method = "fedrep", or strategy.kind = "fedavg".')
        params = self.whole(request.params, request.personal)
        segments = request.rule.segments
        if self.alternates:
            params = params + self._own_steps(request, params)
            segments = segments or self._shared_names
        elif segments:  # Layers take turns. The own part has a turn in every round.
            segments = (*segments, *self.own_names)
        if correction.shift is not None:
            shift = self.parts.join(correction.shift, np.zeros(self.parts.own.dim, np.float32))
            correction = Correction(correction.pull, shift)
        rule = msgspec.structs.replace(request.rule, segments=segments)
        update = self.inner.fit(replace(request, params=params, rule=rule, correction=correction, personal={}))
        x, moved = self.parts.split(update.x)
        return replace(update, x=x, personal={PART: self.parts.split(params)[1] + moved})

    def _own_steps(self, request: FitRequest, params: Vector) -> Vector:
        """Take the steps of the own part alone in a round (FedRep). Returns the change, float32[d]."""
        wanted = self._wanted
        rule = LocalRule(
            steps=wanted.steps or self._max_local_steps, lr=wanted.lr, segments=self.own_names, epochs=wanted.epochs
        )
        if rule.epochs and self.inner.counts is not None:
            rule = rule.counted(self.inner.counts.records(request.device), self._batch)
        key, secret = (derive(key, "own part") for key in (request.key, request.secret))
        return self.inner.fit(FitRequest(request.device, request.round, params, rule, key, secret, rank=request.rank)).x

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the held-out loss of a shared part (with the seed's own part) or of a whole model."""
        return self.inner.evaluate(device, self._measured(params))

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """Continue a held-out text as the inner trainer does, with a vector as of ``evaluate``."""
        if self.inner.continues is None:
            raise TypeError(f"{type(self.inner.trainer).__name__} does not continue text")
        return self.inner.continues.sample(device, self._measured(params), key)

    def _measured(self, params: Vector) -> Vector:
        return params if params.shape == (self.parts.whole.dim,) else self.whole(params)

    def sizes(self) -> Mapping[str, float]:
        """Forecast sizes as the inner trainer. ``trainable`` counts both parts."""
        found = self.inner.trainer.sizes()
        return {**found, "memory_bytes": found["memory_bytes"] + 8.0 * self.parts.own.dim}

    def describe(self) -> dict[str, Any]:
        """Describe the inner trainer, with the number of parameters that stay on each device and the whole layout."""
        return {
            **self.inner.describe(),
            "own_parameters": self.parts.own.dim,
            "whole_spec": self.parts.whole.to_list(),
        }
