"""The trainer's port, and optional ones for what only some trainers can do.

A trainer is registered once, where it is made. ``registered`` looks which optional ports it has; nobody asks later.

    trainer = registered(MyTrainer(recipe))
    if trainer.counts is not None:
        steps = rule.counted(trainer.counts.records(device), batch)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from edgewise.core.errors import RecipeError
from edgewise.core.keys import Key
from edgewise.core.training import (
    DeviceId,
    FitRequest,
    HeldOut,
    Note,
    StepNoise,
    Update,
    as_held_out,
    as_initial,
    as_update,
)
from edgewise.core.vector import Spec, Vector


class Trainer(Protocol):
    """Everything that knows the model and the text. Lives beside the data; the server never has one.

    Raises edgewise errors only: TrainingError, DataError, ModelError.
    """

    @property
    def spec(self) -> Spec:
        """Layout of the trainable vector."""
        ...

    def initial(self) -> Vector:
        """float32[d]: the trainable parameters before round 0."""
        ...

    def devices(self) -> Sequence[DeviceId]:
        """The population, sorted; cheap: no text is read into memory for it."""
        ...

    def fit(self, request: FitRequest) -> Update:
        """Local training; ``request.device`` may be POOLED."""
        ...

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Held-out loss of ``params`` on one device."""
        ...

    def sizes(self) -> Mapping[str, float]:
        """For forecasts: ``parameters`` (whole model), ``trainable``, ``memory_bytes`` of one device in training."""
        ...


class Describes(Protocol):
    """Says what decides its model, for the run's record."""

    def describe(self) -> dict[str, Any]:
        """Facts as plain JSON. A run is resumed only where ``fingerprint`` (of the data) is what it was."""
        ...


class CountsRecords(Protocol):
    """Knows how many records a device trains on."""

    def records(self, device: DeviceId) -> int:
        """Their number."""
        ...


class NoisesSteps(CountsRecords, Protocol):
    """Adds noise to every step for each record of a device (DP-SGD)."""

    def noise_steps(self, noise: StepNoise) -> None:
        """Noise every step from now on. Raises TrainingError(E-BN) for a model that mixes records."""
        ...

    def without_noise(self) -> AbstractContextManager[None]:
        """Plain steps inside."""
        ...


class ReportsMetrics(Protocol):
    """Measures more than losses. A recipe that declares a metric sends it; the others stay with the device."""

    def metrics(self) -> Sequence[str]:
        """Names of what ``Update.head`` has beside the losses."""
        ...


class MeasuresSteps(Protocol):
    """Can measure how long a step takes here."""

    def step_s(self) -> float:
        """Seconds of one optimizer step; 0.0 where no device can train."""
        ...


class ComputesProbe(Protocol):
    """Has arithmetic of its own, by which a run is resumed on the same kind of processor only."""

    def arithmetic(self) -> bytes:
        """What it makes of a small fixed computation."""
        ...


class ContinuesText(Protocol):
    """Goes on with a device's text."""

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """The beginning of a held-out text, how it really goes on, and how the model does."""
        ...


class ReportsReading(Protocol):
    """Says what it read and what it left out."""

    def reading(self, most_bytes: int = 0) -> dict[str, Any] | None:
        """The record (``learn.text.reading``), or None where there is none; tokenizes up to so many bytes for it."""
        ...


class NotesMetrics(Protocol):
    """Measures a person's own metrics beside the losses."""

    def noted(self) -> list[Note]:
        """Those since it was asked last."""
        ...


class TakesNotes(Protocol):
    """Has remarks for who checks a recipe."""

    def notes(self) -> tuple[str, ...]:
        """One sentence each."""
        ...


@dataclass(frozen=True)
class Registered:
    """A trainer, and which optional ports it has; None for those that it does not have."""

    trainer: Trainer
    describes: Describes | None = None
    counts: CountsRecords | None = None
    noises: NoisesSteps | None = None
    measures: MeasuresSteps | None = None
    computes: ComputesProbe | None = None
    continues: ContinuesText | None = None
    reads: ReportsReading | None = None
    remarks: TakesNotes | None = None
    metrics: NotesMetrics | None = None
    reports: ReportsMetrics | None = None

    def fit(self, request: FitRequest) -> Update:
        """``Trainer.fit``. Raises TrainingError(E-TRAIN) also for what is no update."""
        return as_update(self.trainer.fit(request), self.trainer.spec.dim, self._name)

    @cached_property
    def reported(self) -> frozenset[str]:
        """Names of what its updates bring beside losses."""
        return frozenset() if self.reports is None else frozenset(self.reports.metrics())

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """``Trainer.evaluate``. Raises TrainingError(E-TRAIN) also for what is no measurement."""
        return as_held_out(self.trainer.evaluate(device, params), self._name)

    def initial(self) -> Vector:
        """``Trainer.initial``. Raises RecipeError(E-EXTENSION) for what is no vector of the layout."""
        return as_initial(self.trainer.initial(), self.trainer.spec.dim, self._name)

    def describe(self) -> dict[str, Any]:
        """``Describes.describe``; empty where the trainer has no such port. Raises RecipeError(E-EXTENSION) for what is
        not plain JSON."""
        if self.describes is None:
            return {}
        given = self.describes.describe()
        try:
            json.dumps(given)
        except (TypeError, ValueError) as e:
            raise RecipeError("E-EXTENSION", f"{self._name}.describe gave no plain JSON: {e}.") from e
        return given

    @property
    def _name(self) -> str:
        return type(self.trainer).__name__


def registered(trainer: Trainer) -> Registered:
    """Look once what a trainer can do: it has a port where it has all methods of the port.

    Raises RecipeError(E-EXTENSION) for an object that is no trainer; the message names what it lacks.
    """
    if lacks := [name for name in _members(Trainer) if not hasattr(trainer, name)]:
        what = f"{type(trainer).__name__} cannot train: it lacks {', '.join(lacks)}."
        raise RecipeError("E-EXTENSION", what, "define all that engine.trainer.Trainer names.")
    return Registered(
        trainer,
        describes=_port(trainer, Describes),
        counts=_port(trainer, CountsRecords),
        noises=_port(trainer, NoisesSteps),
        measures=_port(trainer, MeasuresSteps),
        computes=_port(trainer, ComputesProbe),
        continues=_port(trainer, ContinuesText),
        reads=_port(trainer, ReportsReading),
        remarks=_port(trainer, TakesNotes),
        metrics=_port(trainer, NotesMetrics),
        reports=_port(trainer, ReportsMetrics),
    )


def _members(port: type[Any]) -> list[str]:
    """What a port and those that it extends define, in order."""
    kinds = [kind for kind in reversed(port.__mro__) if kind not in Protocol.__mro__]
    return [name for kind in kinds for name in vars(kind) if not name.startswith("_")]


def _port(trainer: Trainer, port: Any) -> Any:
    return trainer if all(callable(getattr(trainer, name, None)) for name in _members(port)) else None
