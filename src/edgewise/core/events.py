"""Typed events: what a person, a log or a dashboard is told about a run. A sink is ``Callable[[AnyEvent], None]``."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    """Base; ``at_s`` is wall-clock seconds since the epoch, stamped by the driver (0.0 in golden logs)."""

    at_s: float = 0.0


class RunStarted(Event, frozen=True, tag="run_started"):
    """A run begins or, with ``resumed_round``, goes on from that round."""

    run: str
    name: str
    rounds: int
    population: int
    cohort: int
    dim: int
    resumed_round: int | None = None


class Forecast(Event, frozen=True, tag="forecast"):
    """How long a run will take, from the measured speed of a step: its rounds, and the comparisons after them."""

    rounds_s: float
    compare_s: float


class PhaseStarted(Event, frozen=True, tag="phase_started"):
    """A part of the run: ``load``, ``federated``, ``compare``, ``longer``, ``samples``, ``report``; of how many
    ``steps`` (0: not known)."""

    phase: str
    steps: int = 0


class Noted(Event, frozen=True, tag="noted"):
    """What a person should know before the rounds begin, in sentences: text that is left out, prompts out of sight."""

    notes: list[str]


class RoundStarted(Event, frozen=True, tag="round_started"):
    """``invited`` devices are asked; ``goal`` contributions close the round."""

    round: int
    invited: int
    goal: int
    minimum: int


class Accepted(Event, frozen=True, tag="accepted"):
    """A contribution entered the round's sum; ``rung`` is the one its device chose, None where the codec is fixed;
    ``bytes_down`` is what its device had to download for it."""

    round: int
    device: str
    bytes_up: int
    train_s: float
    encode_s: float
    rung: int | None = None
    bytes_down: int = 0


class Lost(Event, frozen=True, tag="lost"):
    """A device gives nothing this round: ``E-*`` code of its failure, or ``dropped`` where it never answered."""

    round: int
    device: str
    code: str
    reason: str = ""


class Flagged(Event, frozen=True, tag="flagged"):
    """A device's update is in the sum, and after that it broke off, or broke the protocol of secure aggregation:
    ``code`` says how. With E-SHARE and E-SECAGG-REVEAL it lied, and should be revoked;
    with E-SECAGG-ODDS it lied, or more devices dropped out than the policy says."""

    round: int
    device: str
    code: str


class RoundFinished(Event, frozen=True, tag="round_finished"):
    """The model moved, or with ``met=False`` the round was abandoned and it did not.

    ``head`` holds the weighted means that travelled with the updates (train losses). ``lag_l2`` is the L2 distance of
    the model from what devices will be given of it in the next round; 0.0 where they are given the model itself.
    ``code`` says why secure aggregation ended without a sum; None where it did not. ``epsilon`` is what all rounds so
    far have spent of the privacy budget; None without one.
    """

    round: int
    met: bool
    accepted: int
    lost: int
    late: int
    bytes_up: int
    bytes_down: int
    update_l2: float
    head: dict[str, float]
    train_s: float
    encode_s: float
    aggregate_s: float
    seconds: float
    model: str
    lag_l2: float = 0.0
    code: str | None = None
    epsilon: float | None = None


class Evaluated(Event, frozen=True, tag="evaluated"):
    """Held-out quality of one model over devices: ``model`` is ``base``, ``federated``, ``local_only``,
    ``centralised``, or ``longer`` (some devices alone, for more steps); ``nll`` and ``tokens`` per device. ``missing``:
    devices that were asked and did not measure it, each with the code of the reason (``late``, ``dropped``, or an
    error's)."""

    round: int
    model: str
    nll: dict[str, float]
    tokens: dict[str, int]
    seconds: float
    missing: dict[str, str] = {}


class OwnMeasured(Event, frozen=True, tag="own_measured"):
    """A person's own metrics after a round: name -> device -> value. ``model`` is ``base`` or ``federated`` on held-out
    data, or ``training``: of the devices' own training in this round. They travelled by no frame."""

    round: int
    model: str
    metrics: dict[str, dict[str, float]]


class Sampled(Event, frozen=True, tag="sampled"):
    """How a model (``base`` or ``federated``) goes on with the beginning of a device's held-out text: after ``prompt``
    the device has ``actual``, the model says ``text``. Only where the recipe asks for samples."""

    device: str
    model: str
    prompt: str
    actual: str
    text: str


class StoppedEarly(Event, frozen=True, tag="stopped_early"):
    """The run ends after ``played`` rounds, before its last one: the held-out loss was not lower in so many
    ``evaluations`` in a row. The model that counts is the one after ``kept`` rounds. Told again by a resumed run."""

    played: int
    evaluations: int
    kept: int


class Progress(Event, frozen=True, tag="progress"):
    """``done`` of ``total`` steps of a phase that is not made of rounds."""

    phase: str
    done: int
    total: int
    note: str = ""


class RunFinished(Event, frozen=True, tag="run_finished"):
    """All done."""

    model: str
    seconds: float


class RunFailed(Event, frozen=True, tag="run_failed"):
    """The run ended early: ``E-*`` code, or ``crash`` for a bug; with ``resumable`` the same command goes on from
    what is saved when ``--resume`` is added."""

    code: str
    reason: str
    resumable: bool


AnyEvent = (
    RunStarted
    | Forecast
    | PhaseStarted
    | Noted
    | RoundStarted
    | Accepted
    | Lost
    | Flagged
    | RoundFinished
    | Evaluated
    | OwnMeasured
    | Sampled
    | StoppedEarly
    | Progress
    | RunFinished
    | RunFailed
)
Sink = Callable[[AnyEvent], None]

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyEvent)


def to_json(event: AnyEvent) -> str:
    """One JSON line. Raises ValueError on a number that is not finite: JSON would read it back as null."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        numbers = _numbers(value) if isinstance(value, dict) else (value,)
        if any(isinstance(x, float) and not isfinite(x) for x in numbers):
            raise ValueError(f"{type(event).__name__}.{name} is not finite")
    return msgspec.json.encode(event).decode()


def _numbers(found: dict[str, Any]) -> list[Any]:
    """The values of a table, and of the tables in it."""
    return [n for v in found.values() for n in (v.values() if isinstance(v, dict) else (v,))]


def from_json(line: str | bytes) -> AnyEvent:
    """Inverse of ``to_json``; raises msgspec.DecodeError on anything else."""
    event: AnyEvent = _decoder.decode(line)
    return event
