"""The records of local training: what a trainer (port ``engine.trainer.Trainer``) is asked for and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import NamedTuple, TypeGuard

import numpy as np

from edgewise.core.errors import RecipeError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Vector

DeviceId = str
POOLED: DeviceId = "*"  # all training text together: the centralised comparison, possible in simulation only


@dataclass(frozen=True, slots=True)
class Correction:
    """What every gradient gets besides, before it is clipped: g += pull (w - params) + shift.

    ``shift``: float32[d], the same in all steps; None: there is none. A strategy's client half makes it.
    """

    pull: float = 0.0
    shift: Vector | None = None

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class FitRequest:
    """Train ``rule.steps`` steps from ``params`` (float32[d]) on the device's own text; where ``rule.segments`` names
    segments, only those, the update being zero elsewhere.

    Attributes:
        key: decides batch order and dropout. Everyone who has the recipe can derive it, so nothing secret may.
        secret: decides the noise and the draw of records where training is differentially private (``Secrets``).
        correction: of the gradients. A trainer that leaves it out trains another algorithm than the recipe says.

    Same ``key`` and ``secret``, same update, on any driver.
    """

    device: DeviceId
    round: int
    params: Vector
    rule: LocalRule
    key: Key = field(repr=False)
    secret: Key = field(repr=False)
    correction: Correction = Correction()


@dataclass(frozen=True, slots=True)
class Update:
    """What training gives: ``x = params after - params before`` (float32[d]); ``head`` scalars (``loss_first``,
    ``loss_last``: mean loss in nats per token of the first and last quarter of the steps, at least one step each);
    ``count`` tokens (or examples) that the device holds for training, its natural weight."""

    x: Vector
    head: Mapping[str, float]
    count: float

    __repr__ = outline


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Summed negative log-likelihood (nats) over ``tokens`` held-out predictions."""

    nll: float
    tokens: int


def as_update(given: object, dim: int, who: str) -> Update:
    """What a trainer gave as the update of ``dim`` parameters. Raises TrainingError(E-TRAIN) for anything else.
    ``who``: the trainer's name."""
    if not isinstance(given, Update):
        raise TrainingError("E-TRAIN", f"{who}.fit gave {kind_of(given)}, needs a core.training.Update.")
    if not is_vector(given.x, dim):
        raise TrainingError("E-TRAIN", f"{who}.fit gave an update whose x is {kind_of(given.x)}, needs float32[{dim}].")
    if not isinstance(given.count, Real):
        raise TrainingError("E-TRAIN", f"{who}.fit gave an update whose count is {kind_of(given.count)}, no number.")
    return given


def as_initial(given: object, dim: int, who: str) -> Vector:
    """What a trainer gave as the parameters before round 0. Raises RecipeError(E-EXTENSION) for anything else."""
    if not is_vector(given, dim):
        raise RecipeError("E-EXTENSION", f"{who}.initial gave {kind_of(given)}, needs float32[{dim}].")
    return given


def as_held_out(given: object, who: str) -> HeldOut:
    """What a trainer gave as a held-out loss, as Python numbers. Raises TrainingError(E-TRAIN) for anything else."""
    if isinstance(given, HeldOut) and isinstance(given.nll, Real) and isinstance(given.tokens, Integral):
        return HeldOut(float(given.nll), int(given.tokens))
    raise TrainingError("E-TRAIN", f"{who}.evaluate gave {kind_of(given)}, needs core.training.HeldOut(float, int).")


def is_vector(x: object, dim: int) -> TypeGuard[Vector]:
    """Whether it is an array float32[dim]."""
    return isinstance(x, np.ndarray) and x.dtype == np.float32 and x.shape == (dim,)


def kind_of(given: object) -> str:
    """The type of a value for messages, of an array with its shape."""
    if isinstance(given, np.ndarray):
        return f"{given.dtype}{list(given.shape)}"
    if isinstance(given, HeldOut):
        return f"HeldOut({type(given.nll).__name__}, {type(given.tokens).__name__})"
    return type(given).__name__


class Note(NamedTuple):
    """One of a person's own metrics: of a device's ``training`` in a round, or on its ``held_out`` data (round -1)."""

    kind: str
    round: int
    device: DeviceId
    name: str
    value: float


class StepNoise(NamedTuple):
    """Noise on every training step. ``clip``: C, of one record's gradient. ``z``: noise multiplier. ``rate``: q, with
    which each record is in a step."""

    clip: float
    z: float
    rate: float
