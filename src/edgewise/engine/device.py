"""Device side of a round, a pure state machine: turns invitations into training requests, and updates into frames.

    Idle ──Invited──► Training ──Trained──► Idle (with pending codec memory)
      │                   ├─────Trained───► InSecAgg, where masks hide the update ──Delivered──► ... ──Delivered──► Idle
      │                   ├─────Failed────► Idle (memory as before), a Refusal is sent
      │                   └────Withheld───► Idle (memory as before), a Refusal is sent; InSecAgg ends by it too
      └────Unready──► Idle; an invitation that is refused changes nothing in any state, a Refusal is sent

The driver gives the device its secrets with each invitation (``core.keys.Secrets``). None is ever derived from the
plan, which the server has too.

Codec memory (error-feedback residuals), the strategy's memory (control variates) and a device's private vectors must
match the contributions that the server really used. So the memory after a contribution is only *pending*. The next
invitation names the round whose contribution was accepted last, and the device then commits the pending memory or
discards it. A device that is asked again for the same round starts from the same committed memory. With the same
secrets it sends the same bytes, so retries and restarts are idempotent. All of it carries its round. Where the
invitation names neither, the device or the server lost state: the device refuses once with E-STALE and goes on with
empty memory, and with its newest private vectors. An update under secure aggregation, or under the device's own noise,
leaves once per round (``engine.admission``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import frame, keys, vector
from edgewise.core.errors import DecodeError, EdgewiseError
from edgewise.core.frame import Invite
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline
from edgewise.core.training import DeviceId, FitRequest, Update
from edgewise.core.vector import Vector, finite
from edgewise.engine import admission, beacon
from edgewise.engine.broadcast import STALE
from edgewise.engine.device_events import (
    ChargeOwner,
    Delivered,
    Effect,
    Event,
    Failed,
    Invited,
    Save,
    SendFrame,
    Train,
    Trained,
    Unready,
    Withheld,
)
from edgewise.engine.device_state import (
    PRIVATE,
    After,
    Idle,
    InSecAgg,
    Kept,
    State,
    Training,
    Unsent,
    join,
    private_part,
    remembers,
    settled,
)
from edgewise.engine.ports import Trust
from edgewise.plan import pruning
from edgewise.plan.plan import Plan
from edgewise.secagg import client, messages, two_server
from edgewise.secagg.merge import residues
from edgewise.strategies.client import PREVIOUS

NO_VECTORS: Mapping[str, Vector] = {}
STRATEGY, NOTHING = "strategy", Memory()  # name of the child of a device's memory that the strategy's client half keeps
OUT_OF_STEP = "this device's codec memory is not of the round that the server names; it goes on with empty memory"


def step(plan: Plan, state: State, event: Event, trust: Trust | None = None) -> tuple[State, tuple[Effect, ...]]:
    """Take one event. Returns the next state and the effects.

    A device that takes another invitation while it is in a session of secure aggregation leaves that session. The
    frame of a session that it answered last gets the same answer again.
    Args: trust: needed under secure aggregation (``Plan.hides``).
    Raises ValueError for an event that does not fit the state, which is the driver's mistake.
    """
    if isinstance(event, Delivered):
        return _answer_secagg(plan, state, event.message, trust)
    if isinstance(event, Invited):
        return _take_invitation(plan, state, event, trust)
    if isinstance(event, Unready):
        return state, (SendFrame(_refusal_frame(state.device, event.invite, event.code, event.reason)),)
    if isinstance(event, Withheld):
        return _withhold_update(plan, state, event)
    if not isinstance(state, Training):
        raise ValueError("not training")
    if plan.spend is not None and (isinstance(event, Failed) or not finite(event.update.x)):
        # Whether a device is in a sum must not depend on its text, so it contributes zeros.
        event = replace(event, update=_zero_update(plan)) if isinstance(event, Trained) else Trained(_zero_update(plan))
    if isinstance(event, Failed):
        return state.idle, (SendFrame(_refusal_frame(state.device, state.invite, event.code, event.reason)),)
    invite, (update, memory) = state.invite, _finished_update(plan, state, event)
    if plan.rung_pipelines:
        return _ask_for_rung(plan, state, replace(event, update=update), trust)
    pipe = plan.at(invite.round)
    secrets, budget_bytes = state.secrets, plan.budget_bytes(event.elapsed_s, event.up_mbit)
    private, me = secrets.encoding, state.device
    turn = keys.Turn(invite.round, invite.public, private, state.support, budget_bytes, invite.clip, me)
    try:
        payload, idle = _encoded_update(plan, pipe, state.idle, update, turn, memory, event.update.personal)
    except EdgewiseError as e:
        return state.idle, (SendFrame(_refusal_frame(state.device, state.invite, e.code, e.what)),)
    del event, update  # It frees one vector beside the packed payload and the frame.
    if (
        admission.counts_rounds(plan) and not plan.interactive
    ):  # In a masked session this happens when the update leaves.
        idle = replace(idle, answered=invite.round)
    leaves: tuple[Effect, ...] = (ChargeOwner(invite.round),)
    if remembers(plan) or idle.answered == invite.round:
        leaves += (Save(idle),)
    if plan.hides is None:
        packed = pack.pack(payload, pipe.encoded)
        del payload
        return idle, (*leaves, SendFrame(frame.dump(_contribution_frame(state, packed))))
    if trust is None:
        raise ValueError("hiding a contribution needs to know who is enrolled")
    secagg, sid = plan.secagg(invite.round), plan.session(invite)
    body, head = residues(payload)
    secret = trust.identity(me)
    if plan.shared:
        if trust.leader is None or trust.helper is None:
            raise ValueError("sharing a contribution needs the keys of both servers")
        report = two_server.split(secagg, sid, me, secret, trust.leader, trust.helper, body, head, secrets.session)
        return idle, (*leaves, SendFrame(frame.dump(_contribution_frame(state, report))))
    hiding, first = client.start(secagg, sid, me, secret, body, head, secrets.session)
    sent = frame.dump(frame.Step(run=invite.run, round=invite.round, device=me, body=first))
    masking = InSecAgg(invite.round, hiding, idle, _invitation_digest(invite), sent, cohort=state.cohort)
    return masking, (Save(masking), SendFrame(sent))


def _finished_update(plan: Plan, state: Training, event: Trained) -> tuple[Update, Memory]:
    """Apply the strategy's client half to a trained update.

    Returns: the update that is sent, and the memory that the strategy keeps on the device.
    """
    client, update = plan.strategy.client, event.update
    update = replace(update, head=plan.metrics.encoded(update.head))
    if state.dead is not None:
        update = replace(update, x=pruning.zero_pruned(state.dead, update.x))
    if state.start is not None:
        return update, Memory({PREVIOUS: state.start + update.x})
    if client.finish is None:
        return update, Memory()
    number = state.invite.round
    steps = plan.rule(number).steps if event.steps is None else event.steps
    work = plan.work(number, steps, state.device, event.update.choice)
    with np.errstate(all="ignore"):  # Encoding refuses values that are not finite.
        done = client.finished(update.x, _strategy_memory(plan, state.base), state.given, work)
    x = plan.layout.outgoing(done.x, done.beside)
    strategy_memory = Memory({name: done.memory[name] for name in client.memory})
    return Update(x, {**update.head, **done.head}, update.count), strategy_memory


def _strategy_memory(plan: Plan, base: After) -> dict[str, Vector]:
    """Read the strategy's memory on the device. Zeros before the first contribution."""
    strategy_memory = base.memory.child(STRATEGY)
    if not strategy_memory:
        return {name: np.zeros(plan.spec.dim, np.float32) for name in plan.strategy.client.memory}
    return {name: strategy_memory[name] for name in plan.strategy.client.memory}


def _encoded_update(
    plan: Plan,
    pipe: Pipeline,
    idle: Idle,
    update: Update,
    turn: keys.Turn,
    strategy_memory: Memory = NOTHING,
    personal: Mapping[str, Vector] = NO_VECTORS,
) -> tuple[Payload, Idle]:
    """Encode an update from the committed memory. Returns the payload, and the device with its pending memory.

    With differential privacy an update that cannot be encoded is replaced by zeros, encoded as by a device without
    memory, and the memory stays. Whether a device is in a sum must not depend on its text.
    Args: strategy_memory: the strategy's memory after the update. personal: as ``Update.personal``.
    Raises EdgewiseError where the update cannot be encoded and the plan has no differential privacy.
    """
    base = idle.committed.memory
    try:
        payload, after = pipe.encode(update.x, update.head, update.count, plan.phase_memory(base, turn.round), turn)
    except EdgewiseError:
        if plan.spend is None:
            raise
        nothing = _encoded_zero_update(plan)
        payload, _ = pipe.encode(nothing.x, nothing.head, nothing.count, pipe.init(), turn)
        return payload, replace(idle, pending=After(turn.round, base))
    memory = plan.with_phase_memory(base, turn.round, after)
    memory = memory.put(STRATEGY, None, strategy_memory) if strategy_memory else memory
    memory = memory.put(PRIVATE, None, Memory(dict(personal))) if personal else memory
    return payload, replace(idle, pending=After(turn.round, memory))


def _ask_for_rung(plan: Plan, state: Training, event: Trained, trust: Trust | None) -> tuple[State, tuple[Effect, ...]]:
    """Send keys and the best rung that this device can send in time. The update waits for the rung of its group."""
    if trust is None:
        raise ValueError("hiding a contribution needs to know who is enrolled")
    invite, update, me = state.invite, event.update, state.device
    best = plan.best(event.elapsed_s, event.up_mbit)
    try:  # A device that could not encode would cost its group a member after the keys.
        plan.at(invite.round, best).checked(update.x, update.head)
    except EdgewiseError as e:
        if plan.spend is None:
            return state.idle, (SendFrame(_refusal_frame(state.device, state.invite, e.code, e.what)),)
        update = _encoded_zero_update(plan)
    head = {name: float(value) for name, value in update.head.items()}
    x, secrets = bytes(vector.to_bytes(update.x)), state.secrets
    unsent = Unsent(frame.dump(invite), x, secrets.encoding, head, float(update.count), best)
    secagg, secret = plan.secagg(invite.round, best), trust.identity(me)
    hiding, first = client.advertise(secagg, plan.session(invite), me, secret, secrets.session)
    sent = frame.dump(frame.Step(run=invite.run, round=invite.round, device=me, body=first, rung=best))
    asking = InSecAgg(
        invite.round, hiding, state.idle, _invitation_digest(invite), sent, unsent=unsent, cohort=state.cohort
    )
    return asking, (Save(asking), SendFrame(sent))


def _encoded_for_group(plan: Plan, state: InSecAgg, unsent: Unsent, rung: int | None) -> InSecAgg:
    """Encode the update of a session by the rung of the device's group: its own best one, or a smaller one.

    Raises EdgewiseError: E-RUNG for another rung, E-STALE where codec memory got lost since the invitation, and the
        errors of encoding.
    """
    if rung is None or not unsent.best <= rung < len(plan.rung_pipelines):
        raise DecodeError("E-RUNG", "the group's rung is not one that this device can send in time.")
    invite, pipe = frame.from_server(unsent.invite, len(unsent.invite)), plan.at(state.round, rung)
    assert isinstance(invite, Invite)
    assert isinstance(state.client, client.Advertised)
    idle = settled(plan, state.idle, invite.accepted)  # The store may have kept an older memory.
    if idle is None:
        raise DecodeError(STALE, OUT_OF_STEP)
    turn = keys.Turn(state.round, invite.public, unsent.private, clip=invite.clip, device=state.idle.device)
    update = Update(vector.from_bytes(unsent.x, plan.layout.sent.dim), unsent.head, unsent.count)
    payload, idle = _encoded_update(plan, pipe, idle, update, turn)
    ready = client.ready(plan.secagg(state.round, rung), state.client, *residues(payload))
    return replace(state, client=ready, idle=idle, rung=rung, unsent=None)


def _zero_update(plan: Plan) -> Update:
    """Make an update of zeros and of weight zero. Its metrics are at their lower bounds."""
    head = {metric.name: metric.lower for metric in plan.metrics}
    return Update(np.zeros(plan.layout.sent.dim, np.float32), head, 0.0)


def _encoded_zero_update(plan: Plan) -> Update:
    """Make the update of ``_zero_update`` with its metrics encoded."""
    nothing = _zero_update(plan)
    return replace(nothing, head=plan.metrics.encoded(nothing.head))


def _answer_secagg(
    plan: Plan, state: State, message: frame.Step, trust: Trust | None
) -> tuple[State, tuple[Effect, ...]]:
    """Answer a message of secure aggregation. A message to a session that this device is not in gets no answer."""
    if not isinstance(state, InSecAgg) or trust is None:
        return state, ()
    me = state.client.device
    if (message.run, message.round, message.device) != (plan.run, state.round, me):
        return state, ()
    if state.heard == (heard := _invitation_digest(message)):
        return state, (SendFrame(state.said),)
    if state.unsent is not None:
        try:
            state = _encoded_for_group(plan, state, state.unsent, message.rung)
        except EdgewiseError as e:
            return _abort_session(plan, state, e.code)
    secagg = plan.secagg(state.round, state.rung)
    after, answer = client.step(secagg, state.client, message.body, beacon.within(trust.registry, state.cohort))
    idle, answered, charge = state.idle, state.idle.answered, tuple[Effect, ...]()
    if isinstance(after, client.Waiting) and (answered is None or answered < state.round):
        idle, charge = replace(idle, answered=state.round), (ChargeOwner(state.round),)  # The masked update leaves now.
    over = isinstance(after, client.Finished | client.Aborted)
    reply = frame.dump(frame.Step(run=message.run, round=message.round, device=me, body=answer))
    next_state: Kept = idle if over else replace(state, client=after, idle=idle, heard=heard, said=reply)
    return next_state, (*charge, Save(next_state), SendFrame(reply))


def _withhold_update(plan: Plan, state: State, event: Withheld) -> tuple[State, tuple[Effect, ...]]:
    """Answer why no update is sent: a refusal, or the end of the session."""
    if isinstance(state, Training):
        return state.idle, (SendFrame(_refusal_frame(state.device, state.invite, event.code, event.reason)),)
    if isinstance(state, InSecAgg):
        return _abort_session(plan, state, "E-SECAGG-POLICY")
    raise ValueError("nothing was to leave")


def _abort_session(plan: Plan, state: InSecAgg, code: str) -> tuple[State, tuple[Effect, ...]]:
    """Leave a session of secure aggregation with a code."""
    body = messages.dump(messages.Abort(code=code))
    sent = frame.Step(run=plan.run, round=state.round, device=state.device, body=body)
    return state.idle, (Save(state.idle), SendFrame(frame.dump(sent)))


def _take_invitation(plan: Plan, state: State, event: Invited, trust: Trust | None) -> tuple[State, tuple[Effect, ...]]:
    """Take an invitation. A refusal changes nothing: neither memory, nor training or a session that is under way."""
    invite, device = event.invite, state.device
    if isinstance(state, InSecAgg) and state.heard == _invitation_digest(invite):
        return state, (SendFrame(state.said),)
    before = state if isinstance(state, Idle) else state.idle
    no = admission.invitation_refusal(plan, invite, before.answered)
    if (no := no or admission.blob_refusal(plan, invite, event.params, event.support)) is not None:
        return state, (SendFrame(_refusal_frame(device, invite, *no)),)
    try:
        cohort = beacon.verified(plan, trust, device, invite, event.beacon)
    except DecodeError as e:
        return state, (SendFrame(_refusal_frame(device, invite, e.code, e.what)),)
    accepted = invite.accepted
    held = settled(plan, before, accepted)
    if held is None:
        fresh = join(plan, device).committed.memory
        if own := private_part(before):  # It does not depend on what the server has used.
            fresh = fresh.put(PRIVATE, None, Memory(own))
        nothing = After(accepted, fresh)
        empty = Idle(device, nothing, answered=before.answered, lot=before.lot)
        return empty, (Save(empty), SendFrame(_refusal_frame(device, invite, STALE, OUT_OF_STEP)))
    params, given = plan.layout.received(event.params)
    client = plan.strategy.client
    start = None if client.contrast is None else params
    training = Training(
        device, invite, held.committed, event.secrets, event.support, held.answered, given, held.lot, cohort, start,
        pruning.pruned_positions(plan, invite.round, params),
    )  # fmt: skip
    key, rule = plan.batch_key(device, invite.round), plan.device_rule(invite.round, device)
    work = plan.work(invite.round, rule.steps, device)
    correction = client.correction(_strategy_memory(plan, held.committed), given, work)
    previous = held.committed.memory.child(STRATEGY).get(PREVIOUS)
    if client.contrast is not None and previous is not None:
        correction = replace(correction, contrast=replace(client.contrast, previous=previous))
    personal = dict(held.committed.memory.child(PRIVATE).arrays)
    request = FitRequest(
        device, invite.round, params, rule, key, event.secrets.training, correction, work.rank, personal, plan.choices
    )
    leaving = () if state is before else (Save(before),)  # The device never resumes a session that it leaves.
    return training, (Train(request), *leaving)


def _invitation_digest(message: Invite | frame.Step) -> str:
    """Digest of an invitation, by which the device knows one that comes again."""
    return vector.digest(frame.dump(message))


def _contribution_frame(state: Training, payload: bytes | bytearray) -> frame.Contribution:
    """Make the message that carries an update's payload."""
    i = state.invite
    return frame.Contribution(run=i.run, round=i.round, device=state.device, payload=memoryview(payload))


def _refusal_frame(device: DeviceId, invite: Invite, code: str, reason: str) -> bytes:
    """Make the message that refuses an invitation."""
    return frame.dump(
        frame.Refusal(run=invite.run, round=invite.round, device=device, code=code, reason=frame.legible(reason))
    )
