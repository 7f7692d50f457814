"""Held-out loss: devices are asked to measure a model on text that they did not train on.

An evaluation closes as a round does: when all have answered, or after ``round.deadline_s`` with what it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DataError, DecodeError, RoundError
from edgewise.engine.ports import Arrived, Cohort, DeviceId, Lost
from edgewise.engine.round import LATE
from edgewise.plan.compile import Plan

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
