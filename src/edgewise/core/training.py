"""Requests to a trainer and its answers (port ``engine.trainer.Trainer``): the records of local training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import NamedTuple, TypeGuard

import numpy as np
from msgspec import structs

from edgewise.core.errors import RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Vector

DeviceId = str
POOLED: DeviceId = "*"  # All training text together, for the centralised comparison. Simulations only.


@dataclass(frozen=True, slots=True)
class Contrast:
    """A term added to the loss, which contrasts representations of the text (``strategies.moon``): mu l_con.

    Attributes:
        mu: weight of the term.
        tau: temperature.
        previous: float32[d], the device's model after its last contribution. A client half has None here, and the
            engine fills it in.
    """

    mu: float
    tau: float
    previous: Vector | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class Correction:
    """A term added to every gradient before it is clipped: g += pull (w - params) + shift.

    ``shift`` is float32[d], the same in all steps. None means no shift. The client half of a strategy makes it.
    ``contrast`` is a term of the loss, for trainers with the port ``engine.trainer.ContrastsModels`` alone.
    """

    pull: float = 0.0
    shift: Vector | None = None
    contrast: Contrast | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class FitRequest:
    """Request to train ``rule.steps`` steps from ``params`` (float32[d]) on the device's own text.

    If ``rule.segments`` names segments, only those train, and the update is zero elsewhere.

    Attributes:
        key: decides batch order and dropout. Anyone who has the recipe can derive it, so nothing secret may depend on
            it.
        secret: decides the noise and the draw of records if training is differentially private (``Secrets``).
        correction: of the gradients. A trainer that ignores it trains another algorithm than the recipe says.
        rank: only the first ``rank`` columns of each adapter train (``core.factors.columns``), and the update is zero
            in the others. 0: all train.
        personal: vectors that the device keeps for itself (``Update.personal``), of its last contribution. Empty before
            the first.
        choices: names of segments, the fewest first, of which the device trains the most that fit its memory
            (``Update.choice``). The last are all that ``rule`` trains. Empty: ``rule`` alone decides. A trainer that
            knows no limit of memory may ignore them.

    Guarantees: the same ``key`` and ``secret`` give the same update, on any driver.
    """

    device: DeviceId
    round: int
    params: Vector
    rule: LocalRule
    key: Key = field(repr=False)
    secret: Key = field(repr=False)
    correction: Correction = Correction()
    rank: int = 0
    personal: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    choices: tuple[tuple[str, ...], ...] = ()

    def chosen(self, number: int) -> FitRequest:
        """Return the request to train the segments of one choice alone."""
        return replace(self, rule=structs.replace(self.rule, segments=self.choices[number]), choices=())


@dataclass(frozen=True, slots=True)
class Update:
    """Result of local training.

    Attributes:
        x: params after - params before, float32[d].
        head: scalars by name. ``loss_first`` and ``loss_last`` are the mean loss in nats per token of the first and
            last quarter of the steps, at least one step each.
        count: tokens (or examples) that the device holds for training, its natural weight.
        personal: vectors by name that stay on the device. The engine keeps them beside the codec's memory, commits or
            discards them with the contribution, and gives them to the next request. They are no part of ``x``, so no
            stage encodes them, no message carries them, and none can name them. Empty: what was kept stays.
        choice: number of the choice that trained, of ``FitRequest.choices``. None: the last, or there was none.
    """

    x: Vector
    head: Mapping[str, float]
    count: float
    personal: Mapping[str, Vector] = field(default_factory=dict, repr=False)
    choice: int | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Summed negative log-likelihood (nats) over ``tokens`` held-out predictions."""

    nll: float
    tokens: int


def as_update(given: object, dim: int, who: str) -> Update:
    """Check that a trainer returned an update of ``dim`` parameters.

    Args:
        given: the value that ``fit`` returned.
        who: name of the trainer.
    Raises:
        TrainingError: E-TRAIN for anything but an ``Update`` with x of float32[dim] and a real count.
    """
    if not isinstance(given, Update):
        raise TrainingError("E-TRAIN", f"{who}.fit returned {kind_of(given)}, needs a core.training.Update.")
    if not is_vector(given.x, dim):
        raise TrainingError(
            "E-TRAIN", f"{who}.fit returned an update whose x is {kind_of(given.x)}, needs float32[{dim}]."
        )
    if not isinstance(given.count, Real):
        raise TrainingError(
            "E-TRAIN", f"{who}.fit returned an update whose count is {kind_of(given.count)}, needs a number."
        )
    return given


def as_initial(given: object, dim: int, who: str) -> Vector:
    """Check that a trainer returned initial parameters.

    Raises:
        RecipeError: E-EXTENSION for anything but float32[dim].
    """
    if not is_vector(given, dim):
        raise RecipeError("E-EXTENSION", f"{who}.initial returned {kind_of(given)}, needs float32[{dim}].")
    return given


def as_held_out(given: object, who: str) -> HeldOut:
    """Check that a trainer returned a held-out loss, and convert it to Python numbers.

    Raises:
        TrainingError: E-TRAIN for anything but ``HeldOut(float, int)``.
    """
    if isinstance(given, HeldOut) and isinstance(given.nll, Real) and isinstance(given.tokens, Integral):
        return HeldOut(float(given.nll), int(given.tokens))
    raise TrainingError(
        "E-TRAIN", f"{who}.evaluate returned {kind_of(given)}, needs core.training.HeldOut(float, int)."
    )


def is_vector(x: object, dim: int) -> TypeGuard[Vector]:
    """Return True if ``x`` is an array float32[dim]."""
    return isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape == (dim,)


def kind_of(given: object) -> str:
    """Name the type of a value for messages. An array shows with its shape."""
    if isinstance(given, np.ndarray):
        return f"{given.dtype}{list(given.shape)}"
    if isinstance(given, HeldOut):
        return f"HeldOut({type(given.nll).__name__}, {type(given.tokens).__name__})"
    return type(given).__name__


class Note(NamedTuple):
    """One of a person's own metrics, of a device's ``training`` in a round or on its ``held_out`` data (round None)."""

    kind: str
    round: int | None
    device: DeviceId
    name: str
    value: float


class StepNoise(NamedTuple):
    """Noise on every training step.

    Attributes:
        clip: C, the L2 clip of one record's gradient.
        z: noise multiplier.
        rate: q, the probability of each record to be in a step.
    """

    clip: float
    z: float
    rate: float


class RecordSums(NamedTuple):
    """Sums of clipped records, which leave a device in place of an update of local steps (``privacy.record_noise``).

    Attributes:
        clip: C, the L2 clip of one record's gradient.
        step: grid to which each record is rounded, model units.
        records: R, the largest number of records that count, and the divisor.
    """

    clip: float
    step: float
    records: int
