"""Typed events of a run, for people, logs and dashboards. A sink is ``Callable[[AnyEvent], None]``."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    """Base of all events. The driver stamps ``at_s``, wall-clock seconds since the epoch (0.0 in golden logs)."""

    at_s: float = 0.0


class RunStarted(Event, frozen=True, tag="run_started"):
    """A run begins. With ``resumed_round``, it continues from that round."""

    run: str
    name: str
    rounds: int
    population: int
    cohort: int
    dim: int
    resumed_round: int | None = None


class Forecast(Event, frozen=True, tag="forecast"):
    """Expected duration of a run's rounds, and of the comparisons after them, from the measured speed of a step."""

    rounds_s: float
    compare_s: float


class PhaseStarted(Event, frozen=True, tag="phase_started"):
    """A part of the run begins: ``load``, ``federated``, ``compare``, ``longer``, ``samples`` or ``report``.

    ``steps`` is the number of its steps. 0 means unknown.
    """

    phase: str
    steps: int = 0


class Noted(Event, frozen=True, tag="noted"):
    """Notes for a person to read before the rounds begin, for example on text that is left out. One sentence each."""

    notes: list[str]


class RoundStarted(Event, frozen=True, tag="round_started"):
    """A round begins. ``invited`` devices are asked, and ``goal`` contributions close it."""

    round: int
    invited: int
    goal: int
    minimum: int


class Accepted(Event, frozen=True, tag="accepted"):
    """A contribution entered the round's sum.

    Attributes:
        rung: the rung that its device chose. None if the codec is fixed.
        bytes_down: bytes that its device had to download for it.
        staleness: rounds between the model that it was trained from and the round. 0 but in asynchronous rounds.
    """

    round: int
    device: str
    bytes_up: int
    train_s: float
    encode_s: float
    rung: int | None = None
    bytes_down: int = 0
    staleness: int = 0


class SplitSession(Event, frozen=True, tag="split_session"):
    """A device trained its part of a split model in a session with the rest.

    Attributes:
        steps: optimizer steps of the session.
        bytes_up: activations, gradients of outputs, labels, and the headers of their messages.
        bytes_down: outputs, gradients, and headers.
    """

    round: int
    device: str
    steps: int
    bytes_up: int
    bytes_down: int


class Lost(Event, frozen=True, tag="lost"):
    """A device contributes nothing to this round. ``code`` is an ``E-*`` code, or ``dropped`` if it never answered.

    ``reason``: in words. None where nobody gave one.
    """

    round: int
    device: str
    code: str
    reason: str | None = None

    def __post_init__(self) -> None:
        if self.reason == "":  # in the logs of earlier versions
            msgspec.structs.force_setattr(self, "reason", None)


class Flagged(Event, frozen=True, tag="flagged"):
    """A device broke off or broke the secure aggregation protocol after its update entered the sum.

    ``code`` says how. With E-SHARE and E-SECAGG-REVEAL the device lied, and should be revoked. With E-SECAGG-ODDS it
    lied, or more devices dropped out than the policy allows.
    """

    round: int
    device: str
    code: str


class Compared(Event, frozen=True, tag="compared"):
    """Distance of an update from those of the other devices of its round, where the server sees each update.

    Attributes:
        l2: length of the update.
        cosine: to the coordinates' medians of the round's updates. 0.0 if either is zero.
        distance: from these medians, in units of the median distance of the round. 1.0 is usual, and what lies far
            above it is unlike the rest: a lie, or rare text.
    """

    round: int
    device: str
    l2: float
    cosine: float
    distance: float


class RoundFinished(Event, frozen=True, tag="round_finished"):
    """A round ended. The model moved, or with ``met=False`` the round was abandoned and the model did not move.

    Attributes:
        head: weighted means that travelled with the updates (train losses).
        lag_l2: L2 distance of the model from the model that devices get in the next round. 0.0 if they get the model
            itself.
        code: reason why secure aggregation ended without a sum. None if it did not.
        epsilon: privacy budget spent by all rounds so far. None without a budget.
        waited_s: seconds from the first invitation to the end of the round, on the cohort's clock. They are virtual in
            a simulation. None in the logs of earlier versions.
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
    waited_s: float | None = None


class Evaluated(Event, frozen=True, tag="evaluated"):
    """Held-out quality of one model over devices.

    Attributes:
        model: ``base``, ``federated``, ``local_only``, ``centralised``, ``longer`` (some devices alone, for more
            steps), ``local_personal``, ``personal`` or ``personal_elsewhere`` (``apps.report.personal``). With
            ``_unseen`` at its end: on devices that were in no round.
        nll: summed negative log-likelihood by device, nats. tokens: number of predictions by device.
        missing: devices that were asked and did not measure the model, each with the code of the reason (``late``,
            ``dropped``, or an error's).
    """

    round: int
    model: str
    nll: dict[str, float]
    tokens: dict[str, int]
    seconds: float
    missing: dict[str, str] = {}


class Redistilled(Event, frozen=True, tag="redistilled"):
    """The server distilled the round's model again on public text, and kept the result or rejected it.

    Attributes:
        reason: ``perplexity`` or ``diversity``, the figure that rejected it. None if it is kept.
        perplexity_before, perplexity: of the model, on held-out public text, before and after.
        diversity_before, diversity: share of distinct pairs of tokens in text that the model writes.
        teacher_before, teacher: the teacher's perplexity on the same text, before and after it learnt.
    """

    round: int
    kept: bool
    reason: str | None
    perplexity_before: float
    perplexity: float
    diversity_before: float
    diversity: float
    teacher_before: float
    teacher: float
    seconds: float

    def __post_init__(self) -> None:
        if self.reason == "":  # in the logs of earlier versions
            msgspec.structs.force_setattr(self, "reason", None)


class OwnMeasured(Event, frozen=True, tag="own_measured"):
    """A person's own metrics after a round: name -> device -> value. They did not travel in a frame.

    ``model`` is ``base`` or ``federated`` for metrics on held-out data, and ``training`` for metrics of the devices'
    own training in this round.
    """

    round: int
    model: str
    metrics: dict[str, dict[str, float]]


class Sampled(Event, frozen=True, tag="sampled"):
    """Continuation of a device's held-out text by a model (``base`` or ``federated``).

    After ``prompt`` the device's text has ``actual``, and the model writes ``text``. Sent only if the recipe asks for
    samples.
    """

    device: str
    model: str
    prompt: str
    actual: str
    text: str


class StoppedEarly(Event, frozen=True, tag="stopped_early"):
    """The run ends after ``played`` rounds, before its last one.

    The held-out loss was not lower in ``evaluations`` evaluations in a row. The model that counts is the one after
    ``kept`` rounds. A resumed run sends this event again.
    """

    played: int
    evaluations: int
    kept: int


class Progress(Event, frozen=True, tag="progress"):
    """Progress of a phase that is not made of rounds: ``done`` of ``total`` steps."""

    phase: str
    done: int
    total: int
    note: str = ""


class RunFinished(Event, frozen=True, tag="run_finished"):
    """The run is complete."""

    model: str
    seconds: float


class RunFailed(Event, frozen=True, tag="run_failed"):
    """The run ended early. ``code`` is an ``E-*`` code, or ``crash`` for a bug.

    With ``resumable``, the same command with ``--resume`` continues from the saved state.
    """

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
    | SplitSession
    | Lost
    | Flagged
    | Compared
    | RoundFinished
    | Evaluated
    | OwnMeasured
    | Redistilled
    | Sampled
    | StoppedEarly
    | Progress
    | RunFinished
    | RunFailed
)
Sink = Callable[[AnyEvent], None]

_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(AnyEvent)


def to_json(event: AnyEvent) -> str:
    """Write an event as one JSON line.

    Raises:
        ValueError: a number is not finite. JSON would read it back as null.
    """
    for name in event.__struct_fields__:
        value = getattr(event, name)
        numbers = _metric_values(value) if isinstance(value, dict) else (value,)
        if any(isinstance(x, float) and not isfinite(x) for x in numbers):
            raise ValueError(f"{type(event).__name__}.{name} is not finite")
    return msgspec.json.encode(event).decode()


def _metric_values(table: dict[str, Any]) -> list[Any]:
    """List the values of a table, and of the tables in it."""
    return [n for v in table.values() for n in (v.values() if isinstance(v, dict) else (v,))]


def from_json(line: str | bytes) -> AnyEvent:
    """Read an event from a JSON line. Inverse of ``to_json``. Raises msgspec.DecodeError for anything else."""
    event: AnyEvent = _decoder.decode(line)
    return event
