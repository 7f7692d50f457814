"""Device side of the beacon of a run (``engine.beacon``): commit to a value, and reveal it for one list.

    state, effects = answer(plan, state, message, trust, entropy)

The state is durable before a frame leaves. So a device that was killed gives the same commitment and the same reveal
again, and never a reveal for a second list.
"""

from __future__ import annotations

from dataclasses import replace

from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Key, derive
from edgewise.crypto import sign
from edgewise.engine import beacon
from edgewise.engine.device_events import Effect, Save, SendFrame
from edgewise.engine.device_state import Idle, Kept, Lot
from edgewise.engine.ports import Trust
from edgewise.plan.plan import Plan

Out = tuple[Kept, tuple[Effect, ...]]


def answer(plan: Plan, state: Kept, message: frame.Call | frame.Commitments, trust: Trust, entropy: Key) -> Out:
    """Answer a message about the beacon.

    A message of another run or round, or of a run whose server draws cohorts alone, gets no answer. A list that this
    device cannot reveal for gets a refusal and changes nothing.
    Args: entropy: 32 fresh secret bytes that have no other use.
    """
    if (message.run, message.round) != (plan.run, plan.rounds) or not plan.contributors:
        return state, ()
    if isinstance(message, frame.Call):
        return _committed_lot(plan, state, entropy)
    return _revealed_lot(plan, state, message, trust)


def _committed_lot(plan: Plan, state: Kept, entropy: Key) -> Out:
    """Commit to this device's random value, its lot."""
    idle = state if isinstance(state, Idle) else state.idle
    lot = idle.lot or Lot(derive(entropy, "beacon"))
    after, saved = _with_lot(state, lot)
    value = beacon.commitment(plan.run, state.device, lot.value)
    sent = frame.Commitment(run=plan.run, round=plan.rounds, device=state.device, commitment=value)
    return after, (*saved, SendFrame(frame.dump(sent)))


def _revealed_lot(plan: Plan, state: Kept, message: frame.Commitments, trust: Trust) -> Out:
    """Reveal the lot for the one list that holds its commitment."""
    idle, me = state if isinstance(state, Idle) else state.idle, state.device
    fixed, lot = beacon.list_digest(plan.run, message.anchor, message.listed), idle.lot
    try:
        beacon.check_list(plan.contributors, trust, message.listed)
        if lot is None:
            raise DecodeError("E-BEACON", "this device has committed to nothing in this run.")
        own = frame.Committed(device=me, commitment=beacon.commitment(plan.run, me, lot.value))
        if own not in message.listed:
            raise DecodeError("E-BEACON", "the list does not have this device's commitment.")
        if lot.fixed not in (None, fixed):
            raise DecodeError("E-BEACON", "this device has revealed its value for another list of the run.")
    except DecodeError as e:
        no = frame.Refusal(run=plan.run, round=plan.rounds, device=me, code=e.code, reason=frame.legible(e.what))
        return state, (SendFrame(frame.dump(no)),)
    signature = sign.sign(trust.identity(me), beacon.reveal_digest(fixed, me, lot.value))
    after, saved = _with_lot(state, Lot(lot.value, fixed))
    reveal = frame.Reveal(run=plan.run, round=plan.rounds, device=me, value=lot.value, signature=signature)
    return after, (*saved, SendFrame(frame.dump(reveal)))


def _with_lot(state: Kept, lot: Lot) -> tuple[Kept, tuple[Effect, ...]]:
    """Put a lot into the state, and save the state where the lot is new."""
    idle = state if isinstance(state, Idle) else state.idle
    if idle.lot == lot:
        return state, ()
    idle = replace(idle, lot=lot)
    after: Kept = idle if isinstance(state, Idle) else replace(state, idle=idle)
    return after, (Save(after),)
