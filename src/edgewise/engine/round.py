"""One round as a pure state machine: ``step(state, event) -> (state, effects)``. No clock, no I/O.

    Collecting ──goal reached / nobody outstanding / deadline with enough──► Closed(met=True), the sum in the clear
        │    └──the same, two servers──► Opening ──the helper's half──────► Closed(met=True)
        │    └──the same, masks──► Exchanging ──every session has ended───► Closed(met, or not)
        └──minimum out of reach / deadline with too few──► Closed(met=False)

A state is a fold of the round's log. The same events give the same state, so an interrupted round resumes where it was.
The driver feeds one event at a time. It performs the effects in their order before the next event.
Guarantees by the order of effects: the privacy budget is charged before anything that opens a sum leaves. The list of
    survivors is on the disk before devices, or a helper, hear of it.

Vectors are summed outside (``Fold``, ``engine.aggregation``). With masks they are residues in the sessions' states.

Rules:
    A device counts once. Duplicates are ignored.
    A device that was reported lost and answers before collecting ends counts as having answered.
    A contribution to another round is late. One from a device that was not invited is refused.
    In asynchronous rounds devices of earlier rounds are invited too, each to the round of its own invitation.
    After closing nothing changes any more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgewise.core.frame import Contribution, Step
from edgewise.core.training import DeviceId
from edgewise.engine import exchange
from edgewise.engine.round_states import (
    OUTDATED,
    Answered,
    Charge,
    Close,
    Closed,
    Collecting,
    Counted,
    Deadline,
    Dismiss,
    Effect,
    Event,
    Exchanging,
    Fold,
    Gone,
    Ignore,
    Masks,
    Open,
    Opened,
    Opening,
    Pin,
    Protocol,
    ReportLoss,
    RoundPolicy,
    Send,
    State,
    TwoServers,
    Usable,
    Useless,
)
from edgewise.secagg import server, server_states
from edgewise.secagg.events import SecAggReceived, SecAggRefused

LATE, DROPPED = "late", exchange.DROPPED
TOO_OLD = "the device still trains from a model that is older than buffer.max_staleness allows."

Out = tuple[State, tuple[Effect, ...]]


def start(
    round: int,
    invited: frozenset[DeviceId],
    policy: RoundPolicy,
    protocol: Protocol = None,
    invitations: Mapping[DeviceId, bytes] | None = None,
    carried: Mapping[DeviceId, int] | None = None,
    outdated: Sequence[DeviceId] = (),
) -> Out:
    """Begin a round. With fewer invited devices than the minimum it closes at once, unmet.

    Args:
        invitations: device -> frame. They are sent in this order, unless the round closes at once and no device can
            answer in a later one.
        carried: in asynchronous rounds, device -> earlier round whose invitation it still works on.
        outdated: devices that work on an invitation which is too old to count.
    """
    keys, versions = server.start(protocol.session) if isinstance(protocol, Masks) else None, dict(carried or {})
    collecting = Collecting(
        round, invited | versions.keys(), policy, protocol, keys=keys, versions=versions, outdated=tuple(outdated)
    )
    lost = tuple(ReportLoss(device, OUTDATED, TOO_OLD) for device in outdated)
    state, effects = _close_if_settled(collecting, lost, 0.0)
    if isinstance(state, Closed) and carried is None:
        return state, effects
    return state, (*(Send(device, raw) for device, raw in (invitations or {}).items()), *effects)


def unwanted(state: State, device: DeviceId, round: int) -> str | None:
    """Reason why a contribution would not count now: ``closed``, ``uninvited``, ``late``, ``duplicate``, or None."""
    if not isinstance(state, Collecting):
        return "closed"
    if device not in state.invited:
        return "uninvited"
    if round != state.versions.get(device, state.round):
        return LATE
    return "duplicate" if device in state.counted else None


def wanted(state: State, event: Event) -> bool:
    """Tell whether an event changes the state. Other events need not be logged."""
    match state, event:
        case Collecting(), Deadline(at_s):
            return at_s >= state.policy.deadline_at_s
        case Collecting(), Gone(device, round) | Useless(device, round):
            return unwanted(state, device, round) is None and device not in state.reported
        case Collecting(), Answered(device, round) | Usable(device, round):
            return unwanted(state, device, round) is None
        case Exchanging(), _:
            return exchange.wanted(state, event)
        case Opening(), Opened():
            return True
    return False


def waits_for(state: State, device: DeviceId) -> bool:
    """Tell whether the round still waits for an answer of this device."""
    match state:
        case Collecting():
            return device in state.invited and device not in state.counted and device not in state.reported
        case Exchanging():
            return exchange.waits_for(state, device)
    return False


def until_s(state: State) -> float | None:
    """Time at which the next ``Deadline`` is due. None where none is."""
    match state:
        case Collecting():
            return state.policy.deadline_at_s
        case Exchanging():
            return min(group.until_s for group in state.groups if group.open)
    return None


def postponed(state: State, by_s: float) -> State:
    """Postpone all deadlines. The time in which the server could hear no device does not count."""
    match state:
        case Collecting():
            return replace(state, policy=replace(state.policy, deadline_at_s=state.policy.deadline_at_s + by_s))
        case Exchanging():
            return replace(state, groups=tuple(replace(g, until_s=g.until_s + by_s) for g in state.groups))
    return state


def step(state: State, event: Event) -> Out:
    """Take one event. Returns the next state and the effects. Never raises for anything that a device does."""
    match state, event:
        case Exchanging(), _:
            return exchange.step(state, event)
        case Opening(collected), Opened(None):
            return collected, (Close(collected.met),)
        case Opening(collected), Opened(code):
            return replace(collected, met=False, accepted=(), code=code), (Close(False),)
        case Collecting(), Deadline(at_s):
            if at_s < state.policy.deadline_at_s:
                return state, ()
            return _close_collecting(state, len(state.counted) >= state.policy.minimum, (), at_s)
        case _, Deadline() | Opened():
            return state, ()
        case _, _:
            if (why := unwanted(state, event.device, event.round)) is not None:
                return state, (Ignore(event.device, why),)
            assert isinstance(state, Collecting)
            return _collect_event(state, event)


def _collect_event(state: Collecting, event: Answered | Usable | Useless | Gone) -> Out:
    """Take an event while contributions are collected."""
    match event:
        case Answered(device, _, Contribution() as message):
            return state, (Fold(device, message),)
        case Answered(device, round, Step() as message, at_s):
            if not isinstance(state.protocol, Masks) or state.keys is None:
                return _collect_event(state, Useless(device, round, "E-FRAME", "a contribution was expected.", at_s))
            if message.rung not in (range(len(state.protocol.rungs)) if state.protocol.rungs else (None,)):
                return _collect_event(
                    state, Useless(device, round, "E-RUNG", "no rung of this run has that number.", at_s)
                )
            keys, effects = server.step_secagg_server(state.keys, SecAggReceived(device, message.body))
            for effect in effects:
                if isinstance(effect, SecAggRefused):
                    reason = "the device's keys cannot be used."
                    return _collect_event(state, Useless(device, round, effect.code, reason, at_s))
            assert isinstance(keys, server_states.Advertising)
            return _count_contribution(replace(state, keys=keys), device, message.rung, at_s)
        case Usable(device, _, rung):
            return _count_contribution(state, device, rung, state.policy.deadline_at_s)
        case Useless(device, _, code, reason) if device not in state.reported:
            state = replace(state, reported=state.reported.plus(device, code))
            return _close_if_settled(state, (ReportLoss(device, code, reason),), event.at_s)
        case Gone(device, _, code) if device not in state.reported:
            state = replace(state, reported=state.reported.plus(device, code))
            return _close_if_settled(state, (ReportLoss(device, code),), event.at_s)
    return state, (Ignore(event.device, "duplicate"),)


def _count_contribution(state: Collecting, device: DeviceId, rung: int | None, at_s: float) -> Out:
    """Count a contribution that is in the sum."""
    returned = state.returned + (device in state.reported)
    state = replace(state, counted=state.counted.plus(device, rung), returned=returned)
    return _close_if_settled(state, (Counted(device, rung),), at_s)


def _close_if_settled(state: Collecting, effects: tuple[Effect, ...], at_s: float) -> Out:
    """Close the round if the goal is met, or if too few devices are left."""
    have, policy = len(state.counted), state.policy
    if have >= policy.goal or (state.outstanding == 0 and have >= policy.minimum):
        return _close_collecting(state, True, effects, at_s)
    if have + state.outstanding < policy.minimum:
        return _close_collecting(state, False, effects, at_s)
    return state, effects


def _close_collecting(state: Collecting, met: bool, effects: tuple[Effect, ...], at_s: float) -> Out:
    """End collecting. Where the server sees each contribution, this ends the round too."""
    late = tuple(sorted(state.invited - {*state.counted, *state.reported}))
    end = Closed(state.round, met, state.accepted, state.lost, late)
    match state.protocol:
        case _ if not met:
            return end, (*effects, Close(False))
        case None:
            return end, (*effects, Charge(), Close(True))
        case TwoServers():
            return Opening(end), (*effects, Pin(0, end.accepted), Charge(), Open(end.accepted))
        case Masks() as masks:
            assert state.keys is not None
            after, more = exchange.begin(end, state.policy, masks, state.keys, state.counted, at_s)
            return after, (*effects, Dismiss(frozenset(end.accepted)), *more)
