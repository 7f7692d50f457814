"""Held-out loss: devices are asked to measure a model on text that they did not train on. And what it decides: which
model of a run counts, and when the run ends (``round.keep``, ``round.patience``).

An evaluation closes as a round does: when all have answered, or after ``round.deadline_s`` with what it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DataError, DecodeError, RoundError
from edgewise.core.training import DeviceId
from edgewise.engine.ports import Arrived, Cohort, Lost
from edgewise.engine.round import LATE
from edgewise.plan.compile import Plan
from edgewise.plan.section import RoundSection

BASE, FEDERATED = "base", "federated"  # the models that evaluations of a run measure
MOST_TOKENS, LARGEST_NLL = 2**53, 2.0**128  # of a measurement: integers of a database, float32 losses


def evaluate(
    cohort: Cohort,
    plan: Plan,
    name: str,
    number: int,
    params: vector.Vector,
    devices: Sequence[DeviceId],
    now_s: Callable[[], float],
) -> events.Evaluated:
    """Ask ``devices`` for the held-out loss of ``params`` (float32[d]), the model ``name`` after round ``number``.

    Devices that do not answer by the deadline, are lost, or refuse are ``missing`` in the event, each with its code. A
    device that holds no held-out text is not missing: it has nothing to measure.

    Raises:
        DataError: every device refused or holds no held-out text; the reason is that of the last refusal.
        RoundError: no device answered in time.
    """
    began = now_s()
    (model,) = cohort.publish((vector.to_bytes(params),))
    deadline_at_s = cohort.now_s() + plan.sampling.deadline_s
    for device in devices:
        cohort.send(device, frame.dump(frame.Probe(run=plan.run, round=number, model=model)))
    nll: dict[str, float] = {}
    tokens: dict[str, int] = {}
    missing: dict[str, str] = {}
    waiting, refused = set(devices), DecodeError("E-DATA-EMPTY", "no device holds text to measure it on.")
    while waiting:
        item = cohort.receive(max(0.0, deadline_at_s - cohort.now_s()))
        if item is None or item.at_s > deadline_at_s:
            break
        if isinstance(item, Lost):
            if item.device in waiting:
                waiting.discard(item.device)
                missing[item.device] = item.code
            continue
        held = _measurement(item, plan, number)
        if held is None or held.device not in waiting:
            continue
        waiting.discard(held.device)
        if isinstance(held, frame.Refusal):
            code = held.code if held.code in REGISTRY else "E-FRAME"
            missing[held.device], refused = code, DecodeError(code, frame.legible(held.reason))
        elif held.tokens:
            nll[held.device], tokens[held.device] = held.nll, held.tokens
    cohort.close_round()
    silent = {device: code for device, code in missing.items() if code not in REGISTRY} | dict.fromkeys(waiting, LATE)
    if not nll and len(silent) == len(set(devices)):
        within = f"within {plan.sampling.deadline_s:g} s"
        what = f"no device answered {within} when {len(silent)} were asked to measure the model ({name})."
        raise RoundError("E-ROUND", what, "see that devices are there, or raise round.deadline_s, then --resume.")
    if not nll:
        raise DataError(refused.code, f"no device could measure the model ({name}): {refused.what}", refused.fix)
    missing = dict(sorted((missing | silent).items()))
    measured, counts = dict(sorted(nll.items())), dict(sorted(tokens.items()))
    return events.Evaluated(
        round=number, model=name, nll=measured, tokens=counts, seconds=now_s() - began, missing=missing
    )


class Kept(NamedTuple):
    """Which model of a run counts.

    Attributes:
        played: the model after so many rounds; 0: the base.
        waited: evaluations since the one with the lowest loss.
        stopped: ``round.patience`` has ended the run.
    """

    played: int
    waited: int
    stopped: bool


def kept(section: RoundSection, told: Iterable[events.Evaluated], played: int) -> Kept:
    """What a run's evaluations decide, those of the base and of the federated model; of ``played`` rounds the last one
    counts where ``round.keep`` is "last".

    The loss of an evaluation is sum(nll) / sum(tokens). One is better than another where its loss over the devices of
    both is lower, and where no device failed at it that the other measured: a model that some devices cannot measure
    any more has not improved. A device that did not answer in time says nothing of the model.

    Guarantees: a function of its arguments, so that a resumed run decides as the run would have.
    """
    best: events.Evaluated | None = None
    waited = 0
    for e in sorted((e for e in told if e.model in (BASE, FEDERATED)), key=lambda e: e.round):
        if best is None or _better(e, best):
            best, waited = e, 0
        else:
            waited += 1
    stopped = bool(section.patience) and waited >= section.patience
    lowest = best.round + 1 if best is not None else played
    return Kept(lowest if section.keep == "best" else played, waited, stopped)


def _better(new: events.Evaluated, old: events.Evaluated) -> bool:
    both = old.nll.keys() & new.nll.keys()
    failed = any(new.missing.get(device) in REGISTRY for device in old.nll.keys() - both)
    return bool(both) and not failed and _loss(new, both) < _loss(old, both)


def _loss(e: events.Evaluated, devices: Iterable[str]) -> float:
    at = sorted(devices)
    return math.fsum(e.nll[d] for d in at) / sum(e.tokens[d] for d in at)


def _measurement(item: Arrived, plan: Plan, number: int) -> frame.Measurement | frame.Refusal | None:
    """What answers this evaluation's probe; None for late mail and rubbish, impossible numbers included."""
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
