"""Exact held-out losses of single devices: an instrument of simulations (port ``engine.ports.Evaluator``).

    probes = Probes(cohort, plan, population, time.perf_counter)
    probes.evaluate("federated", 3, params).nll      device -> summed loss on text that it did not train on

A probe is an ordinary frame, and its answer comes through the loop that rounds use. The answer holds the figures of a
single device, which reveal something about its text. So no real fleet is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DataError, DecodeError, RoundError
from edgewise.core.training import DeviceId
from edgewise.engine.loop import receive
from edgewise.engine.ports import Absent, Arrived, Cohort, Expired
from edgewise.engine.round import LATE
from edgewise.plan.plan import Plan

MOST_TOKENS, LARGEST_NLL = 2**53, 2.0**128  # limits of a measurement: integers of a database, float32 losses

NO_TEXT = "no device holds text to measure it on."


@dataclass(frozen=True)
class Probes:
    """Ask devices for the held-out loss of a model.

    ``now_s``: wall clock for the duration in the event.
    """

    cohort: Cohort
    plan: Plan
    population: Sequence[DeviceId]
    now_s: Callable[[], float]

    @property
    def devices(self) -> list[DeviceId]:
        """The devices to ask: all, or ``eval.devices`` of them spread evenly over the population."""
        limit = self.plan.evaluations.devices or len(self.population)
        n, limit = len(self.population), min(limit, len(self.population))
        return [self.population[i * n // limit] for i in range(limit)]

    def evaluate(self, model: str, round: int, params: vector.Vector) -> events.Evaluated:
        """See Evaluator. It ends as a round does: when all have answered, or after ``round.deadline_s``.

        Devices that do not answer by the deadline, are lost, or refuse are ``missing`` in the event, each with its
        code. A device that holds no held-out text is not missing, because it has nothing to measure.

        Raises:
            DataError: every device refused or holds no held-out text. The reason is that of the last refusal.
            RoundError: no device answered in time.
        """
        began, plan, devices = self.now_s(), self.plan, self.devices
        (blob,) = self.cohort.publish((vector.to_bytes(params),))
        answers = _Answers(plan, round, self.cohort.now_s() + plan.sampling.deadline_s, set(devices))
        for device in devices:
            self.cohort.send(device, frame.dump(frame.Probe(run=plan.run, round=round, model=blob)))
        receive(self.cohort, answers)
        self.cohort.close_round()
        silent = {device: code for device, code in answers.missing.items() if code not in REGISTRY}
        silent |= dict.fromkeys(answers.waiting, LATE)
        if not answers.nll and len(silent) == len(devices):
            within = f"within {plan.sampling.deadline_s:g} s"
            what = f"no device answered {within} when {len(silent)} were asked to measure the model ({model})."
            raise RoundError(
                "E-ROUND", what, "check that devices are running, or raise round.deadline_s, then --resume."
            )
        if not answers.nll:
            refused = answers.refused
            raise DataError(refused.code, f"no device could measure the model ({model}): {refused.what}", refused.fix)
        return events.Evaluated(
            round=round,
            model=model,
            nll=dict(sorted(answers.nll.items())),
            tokens=dict(sorted(answers.tokens.items())),
            seconds=self.now_s() - began,
            missing=dict(sorted((answers.missing | silent).items())),
        )


@dataclass
class _Answers:
    """The answers to one evaluation. It is a ``Listener``."""

    plan: Plan
    round: int
    deadline_at_s: float
    waiting: set[DeviceId]
    nll: dict[DeviceId, float] = field(default_factory=dict)
    tokens: dict[DeviceId, int] = field(default_factory=dict)
    missing: dict[DeviceId, str] = field(default_factory=dict)
    refused: DecodeError = field(default_factory=lambda: DecodeError("E-DATA-EMPTY", NO_TEXT))
    over: bool = False

    @property
    def until_s(self) -> float | None:
        return self.deadline_at_s if self.waiting and not self.over else None

    def take(self, record: Arrived | Absent | Expired) -> None:
        if isinstance(record, Expired):
            self.over = True
        elif self.over or record.device not in self.waiting:
            return
        elif isinstance(record, Absent):
            self.waiting.discard(record.device)
            self.missing[record.device] = record.code
        elif (answer := _probe_measurement(record, self.plan, self.round)) is not None:
            self.waiting.discard(answer.device)
            if isinstance(answer, frame.Refusal):
                code = answer.code if answer.code in REGISTRY else "E-FRAME"
                self.missing[answer.device], self.refused = code, DecodeError(code, frame.legible(answer.reason))
            elif answer.tokens:
                self.nll[answer.device], self.tokens[answer.device] = answer.nll, answer.tokens


def _probe_measurement(item: Arrived, plan: Plan, number: int) -> frame.Measurement | frame.Refusal | None:
    """Decode an answer to this evaluation's probe. None for late mail, rubbish and impossible numbers."""
    try:
        message = frame.from_device(item.frame, plan.frame_limit_bytes)
    except DecodeError:
        return None
    if not isinstance(message, frame.Measurement | frame.Refusal):
        return None
    if (message.device, message.round, message.run) != (item.device, number, plan.run):
        return None
    if isinstance(message, frame.Refusal):
        return message
    possible = 0 <= message.tokens <= MOST_TOKENS and 0.0 <= message.nll <= message.tokens * LARGEST_NLL
    return message if possible else None
