"""Port of trainers, and optional ports for abilities that only some trainers have.

A trainer is registered once, where it is made. ``registered`` finds its optional ports then, and no other code looks.

    trainer = registered(MyTrainer(recipe))
    if trainer.counts is not None:
        steps = rule.counted(trainer.counts.records(device), batch)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from inspect import get_annotations
from typing import Any, Protocol

from edgewise.core.errors import RecipeError, TrainingError
from edgewise.core.keys import Key
from edgewise.core.training import (
    DeviceId,
    FitRequest,
    HeldOut,
    Note,
    RecordSums,
    StepNoise,
    Update,
    as_held_out,
    as_initial,
    as_update,
)
from edgewise.core.vector import Spec, Vector
from edgewise.engine.split_rest import Sessions


class Trainer(Protocol):
    """Trainer of a model on local text. It lives beside the data, and the server never has one.

    Raises edgewise errors only: TrainingError, DataError, ModelError.
    """

    @property
    def spec(self) -> Spec:
        """Layout of the trainable vector."""
        ...

    def initial(self) -> Vector:
        """Make the trainable parameters before round 0, float32[d]."""
        ...

    def devices(self) -> Sequence[DeviceId]:
        """List the population, sorted. It is cheap: no text is read into memory."""
        ...

    def fit(self, request: FitRequest) -> Update:
        """Train on a device's data. ``request.device`` may be POOLED."""
        ...

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the held-out loss of ``params`` on one device."""
        ...

    def sizes(self) -> Mapping[str, float]:
        """Sizes for forecasts: ``parameters`` (whole model), ``trainable``, ``memory_bytes`` of one training device."""
        ...


class Describes(Protocol):
    """Optional port of a trainer that describes its model and data, for the run's record."""

    def describe(self) -> dict[str, Any]:
        """Return facts as plain JSON. A run resumes only where ``fingerprint`` (of the data) is unchanged."""
        ...


class CountsRecords(Protocol):
    """Optional port of a trainer that knows the number of records of a device."""

    def records(self, device: DeviceId) -> int:
        """Count the records that a device trains on."""
        ...


class NoisesSteps(CountsRecords, Protocol):
    """Optional port of a trainer that adds noise to every step, for privacy of each record of a device (DP-SGD)."""

    def noise_steps(self, noise: StepNoise) -> None:
        """Add noise to every step from now on. Raises TrainingError(E-BN) for a model that mixes records."""
        ...

    def without_noise(self) -> AbstractContextManager[None]:
        """Take steps without noise inside the context."""
        ...


class SumsRecords(CountsRecords, Protocol):
    """Optional port of a trainer that sums clipped gradients of records, for their privacy in a hidden sum."""

    def sum_records(self, sums: RecordSums) -> None:
        """Return such sums as updates from now on. Raises TrainingError(E-BN) for a model that mixes records."""
        ...

    def without_noise(self) -> AbstractContextManager[None]:
        """Train as the recipe's local training says inside the context."""
        ...


class HoldsBack(Protocol):
    """Optional port of a trainer that can hold back a part of a device's training data, to choose by it."""

    def holding_back(self) -> AbstractContextManager[None]:
        """Inside the context train without the last part of the training data, and evaluate on that part."""
        ...


class ReportsMetrics(Protocol):
    """Optional port of a trainer that measures more than losses. A metric is sent only where the recipe declares it."""

    def metrics(self) -> Sequence[str]:
        """List the names of metrics in ``Update.head`` beside the losses."""
        ...


class MeasuresSteps(Protocol):
    """Optional port of a trainer that can measure the duration of a step."""

    def step_s(self) -> float | None:
        """Measure the seconds of one optimizer step. None where no device can train."""
        ...


class BatchesDevices(Protocol):
    """Optional port of a trainer that trains several devices in one pass."""

    def apart(self) -> str | None:
        """Return the reason why devices cannot be trained together. None where they can."""
        ...

    def fit_many(self, requests: Sequence[FitRequest]) -> Sequence[Update | Exception]:
        """Train several devices. Return for each request its update, or the error that ends this device's part.

        An update equals that of ``Trainer.fit`` to rounding, whatever the other requests are.
        """
        ...


class TrainsModel(CountsRecords, Protocol):
    """Optional port of a trainer whose torch model can move along directions (``learn.zeroth_order``).

    The engine does not import torch, so the types stand here as text.

    Attributes:
        model: ``nn.Module``.
        loss: ``learn.train.Loss``.
        flat: the trained parameters, ``learn.flat.Flat``.
        training: the recipe's [training].
        forward_bytes: memory of a forward pass.
    """

    model: Any
    loss: Any
    flat: Any
    training: Any
    forward_bytes: float

    def work(self, request: FitRequest) -> tuple[Iterable[Any], float]:
        """Return the batches of each step, and the device's weight."""
        ...


class ContrastsModels(Protocol):
    """Optional port of a trainer that adds a contrast of representations to the loss (``Correction.contrast``)."""

    def contrasts(self) -> str | None:
        """Return the reason why its model gives no representations. None where it does."""
        ...


class FitsBlocks(Protocol):
    """Optional port of a trainer that trains the blocks that fit a device's memory (``FitRequest.choices``)."""

    def blocks_that_fit(self, device: DeviceId) -> int:
        """Return the number of last blocks that fit. 0: the device has no limit and trains all."""
        ...


class ComputesProbe(Protocol):
    """Optional port of a trainer whose arithmetic depends on the processor. A run resumes only on the same kind."""

    def arithmetic(self) -> bytes:
        """Compute a small fixed probe, to compare processors by its bytes."""
        ...


class ContinuesText(Protocol):
    """Optional port of a trainer whose model can continue a device's text."""

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """Sample the beginning of a held-out text, its true continuation, and the model's continuation."""
        ...


class ReportsReading(Protocol):
    """Optional port of a trainer that reports the data that it read and left out."""

    def reading(self, most_bytes: int = 0) -> dict[str, Any] | None:
        """Make the record (``learn.text.reading``), or None without one. Tokenizes up to ``most_bytes`` for it."""
        ...


class NotesMetrics(Protocol):
    """Optional port of a trainer that measures a user's own metrics beside the losses."""

    def noted(self) -> list[Note]:
        """Return the measurements since the last call."""
        ...


class TakesNotes(Protocol):
    """Optional port of a trainer with remarks for `edgewise check`."""

    def notes(self) -> tuple[str, ...]:
        """List the remarks, one sentence each."""
        ...


class KeepsPart(Protocol):
    """Optional port of a trainer whose devices keep a part of the model (``drivers.workers.parted``).

    Attributes:
        inner: the trainer of the whole model.
        own_names: segments of the part that stays.
    """

    inner: Registered
    own_names: tuple[str, ...]

    def whole(self, shared: Vector, private: Mapping[str, Vector] | None = None) -> Vector:
        """Join a shared part with a device's own part, or with that of the seed, to a model of ``inner``."""
        ...


class SplitsModel(Protocol):
    """Optional port of a trainer whose devices train a part of the model in sessions (``learn.split_trainer``).

    Attributes:
        sessions: the rest of the model in a round's sessions.
        rest_start: float32[s], the rest before round 0.
        token_bytes: bytes ``up`` and ``down`` of a token in each pass, without headers.
    """

    sessions: Sessions
    rest_start: Vector
    token_bytes: Mapping[str, float]


@dataclass(frozen=True)
class Registered:
    """Trainer with its optional ports. A port that it does not have is None."""

    trainer: Trainer
    describes: Describes | None = None
    counts: CountsRecords | None = None
    noises: NoisesSteps | None = None
    sums: SumsRecords | None = None
    measures: MeasuresSteps | None = None
    computes: ComputesProbe | None = None
    continues: ContinuesText | None = None
    reads: ReportsReading | None = None
    remarks: TakesNotes | None = None
    metrics: NotesMetrics | None = None
    reports: ReportsMetrics | None = None
    holds_back: HoldsBack | None = None
    together: BatchesDevices | None = None
    moves: TrainsModel | None = None
    keeps: KeepsPart | None = None
    splits: SplitsModel | None = None
    fits_blocks: FitsBlocks | None = None
    contrasts: ContrastsModels | None = None

    def whole(self, params: Vector) -> tuple[Registered, Vector]:
        """Return the trainer of whole models, and a vector of its layout: ``params`` with the seed's own part.

        Both are as they are where devices keep no part, and ``params`` where it is a whole model already.
        """
        if self.keeps is None:
            return self, params
        shared = params.shape == (self.trainer.spec.dim,)
        return self.keeps.inner, self.keeps.whole(params) if shared else params

    def fit(self, request: FitRequest) -> Update:
        """Call ``Trainer.fit``. Raises TrainingError(E-TRAIN) also where the result is no update."""
        return as_update(self.trainer.fit(request), self.trainer.spec.dim, self._trainer_name)

    def fit_many(self, requests: Sequence[FitRequest]) -> list[Update | Exception]:
        """Call ``BatchesDevices.fit_many``. Raises TrainingError(E-TRAIN) where the results are no updates."""
        assert self.together is not None
        found, dim = self.together.fit_many(requests), self.trainer.spec.dim
        if len(found) != len(requests):
            what = f"{self._trainer_name}.fit_many returned {len(found)} results for {len(requests)} requests."
            raise TrainingError("E-TRAIN", what, "return one result for each request, in their order.")
        return [one if isinstance(one, Exception) else as_update(one, dim, self._trainer_name) for one in found]

    @cached_property
    def reported(self) -> frozenset[str]:
        """Names of the metrics in its updates beside losses."""
        return frozenset() if self.reports is None else frozenset(self.reports.metrics())

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Call ``Trainer.evaluate``. Raises TrainingError(E-TRAIN) also where the result is no measurement."""
        return as_held_out(self.trainer.evaluate(device, params), self._trainer_name)

    def initial(self) -> Vector:
        """Call ``Trainer.initial``. Raises RecipeError(E-EXTENSION) where the result is no vector of the layout."""
        return as_initial(self.trainer.initial(), self.trainer.spec.dim, self._trainer_name)

    def describe(self) -> dict[str, Any]:
        """Call ``Describes.describe``. Empty where the trainer lacks the port. Raises RecipeError(E-EXTENSION) where
        the result is not plain JSON."""
        if self.describes is None:
            return {}
        given = self.describes.describe()
        try:
            json.dumps(given)
        except (TypeError, ValueError) as e:
            raise RecipeError("E-EXTENSION", f"{self._trainer_name}.describe gave no plain JSON: {e}.") from e
        return given

    def step_s(self) -> float | None:
        """Call ``MeasuresSteps.step_s``. None where the trainer lacks the port, or gives no time above 0."""
        measured = None if self.measures is None else self.measures.step_s()
        return measured if measured is not None and measured > 0.0 else None

    @property
    def _trainer_name(self) -> str:
        """Name of the trainer's class."""
        return type(self.trainer).__name__


def registered(trainer: Trainer) -> Registered:
    """Find the optional ports of a trainer, once. It has a port where it has all methods and attributes of the port.

    Raises RecipeError(E-EXTENSION) for an object that is no trainer. The message names the missing methods.
    """
    if lacks := [name for name in _port_methods(Trainer) if not hasattr(trainer, name)]:
        what = f"{type(trainer).__name__} cannot train: it lacks {', '.join(lacks)}."
        raise RecipeError("E-EXTENSION", what, "define all that engine.trainer.Trainer names.")
    return Registered(
        trainer,
        describes=_as_port(trainer, Describes),
        counts=_as_port(trainer, CountsRecords),
        noises=_as_port(trainer, NoisesSteps),
        sums=_as_port(trainer, SumsRecords),
        measures=_as_port(trainer, MeasuresSteps),
        computes=_as_port(trainer, ComputesProbe),
        continues=_as_port(trainer, ContinuesText),
        reads=_as_port(trainer, ReportsReading),
        remarks=_as_port(trainer, TakesNotes),
        metrics=_as_port(trainer, NotesMetrics),
        reports=_as_port(trainer, ReportsMetrics),
        holds_back=_as_port(trainer, HoldsBack),
        together=_as_port(trainer, BatchesDevices),
        moves=_as_port(trainer, TrainsModel),
        fits_blocks=_as_port(trainer, FitsBlocks),
        contrasts=_as_port(trainer, ContrastsModels),
    )


def _port_methods(port: type[Any]) -> list[str]:
    """List the methods of a port and of those that it extends, in order."""
    kinds = [kind for kind in reversed(port.__mro__) if kind not in Protocol.__mro__]
    return [name for kind in kinds for name in vars(kind) if not name.startswith("_")]


def _as_port(trainer: Trainer, port: Any) -> Any:
    """Return the trainer if it has all methods and attributes of a port, else None."""
    if not all(callable(getattr(trainer, name, None)) for name in _port_methods(port)):
        return None
    return trainer if all(hasattr(trainer, name) for name in get_annotations(port)) else None
