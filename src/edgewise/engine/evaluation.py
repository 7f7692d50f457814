"""Held-out loss: devices are asked to measure a model on text that they did not train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DataError, DecodeError
from edgewise.engine.ports import Arrived, Cohort, DeviceId, Lost
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

    Raises DataError where no device could measure it, with the reason of the last that refused.
    """
    began = now_s()
    (model,) = cohort.publish((vector.to_bytes(params),))
    for device in devices:
        cohort.send(device, frame.dump(frame.Probe(run=plan.run, round=number, model=model)))
    nll: dict[str, float] = {}
    tokens: dict[str, int] = {}
    waiting, refused = set(devices), DecodeError("E-DATA-EMPTY", "no device answered.")
    while waiting and (item := cohort.receive(float("inf"))) is not None:
        if isinstance(item, Lost):
            waiting.discard(item.device)
            continue
        held = _measurement(item, plan, number)
        if held is None or held.device not in waiting:
            continue
        waiting.discard(held.device)
        if isinstance(held, frame.Refusal):
            refused = DecodeError(held.code if held.code in REGISTRY else "E-FRAME", frame.legible(held.reason))
        elif held.tokens:
            nll[held.device], tokens[held.device] = held.nll, held.tokens
    cohort.close_round()
    if not nll:
        raise DataError(refused.code, f"no device could measure the model ({name}): {refused.what}", refused.fix)
    measured, counts = dict(sorted(nll.items())), dict(sorted(tokens.items()))
    return events.Evaluated(round=number, model=name, nll=measured, tokens=counts, seconds=now_s() - began)


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
