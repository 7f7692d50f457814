"""Exchanges of secure aggregation, as states of the round (``engine.round``), with one session for each group.

Most cohorts are one group. ``grouped`` deals several at random when the keys have arrived. ``codec = "adaptive"`` sorts
devices into groups by the rung that they can send in time. Each session is a machine of ``secagg.server``. This module
feeds it, ends its steps at their deadlines, and puts two effects between its messages:

    Masking ─► Signing      Pin the survivors, then send the list. No other list is ever signed in this session.
    Signing ─► Unmasking    Charge the budget, then ask for the shares that open the sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgewise.core.frame import Step
from edgewise.core.training import DeviceId
from edgewise.engine.round_states import (
    Answered,
    Charge,
    Close,
    Closed,
    Deadline,
    Effect,
    Event,
    Exchanging,
    Gone,
    Group,
    Letter,
    Masks,
    Pin,
    RoundPolicy,
)
from edgewise.engine.rung_groups import deal_into_groups, sort_by_rung
from edgewise.secagg import events, server, server_states
from edgewise.secagg.recovery import NAMED

DROPPED = "dropped"  # reason of a device that sent nothing more

Out = tuple[Exchanging | Closed, tuple[Effect, ...]]


def begin(
    collected: Closed,
    policy: RoundPolicy,
    masks: Masks,
    keys: server_states.Advertising,
    counted: Mapping[DeviceId, int | None],
    at_s: float,
) -> Out:
    """Deal the devices whose keys arrived into groups, and send each its roster. ``counted``: device -> rung."""
    groups, member = list[Group](), dict[DeviceId, int]()
    for rung, devices in _session_groups(masks, counted):
        params = masks.session.params if rung is None else masks.rungs[rung]
        member |= dict.fromkeys(devices, len(groups))
        groups.append(Group(server.restricted_secagg_server(keys, devices, params), rung, at_s))
    state, effects = Exchanging(collected, policy, masks, tuple(groups), member), tuple[Effect, ...]()
    for number in range(len(groups)):
        state, more = _stepped_session(state, number, events.SecAggStepClosed(), at_s)
        effects = (*effects, *more)
    return _end_if_sessions_ended(state, effects)


def _session_groups(
    masks: Masks, counted: Mapping[DeviceId, int | None]
) -> Sequence[tuple[int | None, list[DeviceId]]]:
    """Deal the devices that contribute to the sessions of the round."""
    if not masks.rungs:
        return [(None, devices) for devices in deal_into_groups(tuple(counted), masks.groups, masks.dealing)]
    best = {device: rung for device, rung in counted.items() if rung is not None}
    return sort_by_rung(best, masks.sizes, masks.groups, masks.rungs[0].n_min, masks.dealing)


def waits_for(state: Exchanging, device: DeviceId) -> bool:
    """Tell whether the present step of a device's group still waits for the device."""
    number = state.member.get(device)
    return number is not None and server.secagg_waits_for(state.groups[number].state, device)


def wanted(state: Exchanging, event: Event) -> bool:
    """Tell whether an event changes the state. Late messages of other rounds, copies and rubbish do not."""
    match event:
        case Answered(device, round, Step()):
            return round == state.round and waits_for(state, device)
        case Gone(device, round):
            return round == state.round and waits_for(state, device)
        case Deadline(at_s):
            return any(group.open and group.until_s <= at_s for group in state.groups)
    return False


def step(state: Exchanging, event: Event) -> Out:
    """Take one event. Never raises for anything that a device does."""
    if not wanted(state, event):
        return state, ()
    match event:
        case Answered(device, _, Step(body=body), at_s):
            return _end_if_sessions_ended(
                *_stepped_session(state, state.member[device], events.SecAggReceived(device, body), at_s)
            )
        case Gone(device, _, _, at_s):
            return _end_if_sessions_ended(
                *_stepped_session(
                    _with_fault(state, device, DROPPED), state.member[device], events.SecAggDeviceGone(device), at_s
                )
            )
        case Deadline(at_s):
            open_groups = (n for n, group in enumerate(state.groups) if group.open)
            first = min(open_groups, key=lambda n: state.groups[n].until_s)
            for device in sorted(server.secagg_waiting_for(state.groups[first].state)):
                state = _with_fault(state, device, DROPPED)
            return _end_if_sessions_ended(*_stepped_session(state, first, events.SecAggStepClosed(), at_s))
    return state, ()


def _stepped_session(
    state: Exchanging, number: int, event: events.Event, at_s: float
) -> tuple[Exchanging, tuple[Effect, ...]]:
    """Feed one event to the session of a group."""
    group = state.groups[number]
    after, effects = server.step_secagg_server(group.state, event)
    if after is group.state and not effects:  # The network delivered an older message again.
        return state, ()
    letters = list[Effect]()
    for effect in effects:
        if isinstance(effect, events.SecAggRefused):
            state = _with_fault(state, effect.device, effect.code)
        else:
            letters.append(Letter(effect.device, effect.raw, group.rung))
    match group.state, after:
        case server_states.Masking(), server_states.Signing():
            letters.insert(0, Pin(number, after.survivors))
        case server_states.Signing(), server_states.Unmasking() if not state.charged:
            letters.insert(0, Charge())  # The letters after it ask for the shares that open the first sum.
            state = replace(state, charged=True)
    until_s = group.until_s if type(after) is type(group.state) else at_s + state.masks.deadline_s
    changed = replace(group, state=after, until_s=until_s)
    groups = (*state.groups[:number], changed, *state.groups[number + 1 :])
    return replace(state, groups=groups), tuple(letters)


def _with_fault(state: Exchanging, device: DeviceId, code: str) -> Exchanging:
    """Note a device's fault."""
    return replace(state, faults=state.faults.plus(len(state.faults), (device, code)))


def _end_if_sessions_ended(state: Exchanging, effects: tuple[Effect, ...]) -> Out:
    """End the round once every session has ended.

    With several groups the round has the sums of those that opened. There must be enough of them for the rule between
    groups, and enough devices in them for the round's minimum.
    """
    if any(group.open for group in state.groups):
        return state, effects
    released = tuple((g.rung, g.state) for g in state.groups if isinstance(g.state, server_states.Released))
    failed = [group.state.code for group in state.groups if isinstance(group.state, server_states.Aborted)]
    survivors = tuple(device for _, opened in released for device in opened.survivors)
    met = len(released) >= state.masks.least and len(survivors) >= state.policy.minimum
    if not met:
        released, survivors = (), ()
    faults, in_sum = _fault_codes(state, met), set(survivors)
    lost = tuple((device, code) for device, code in faults.items() if device not in in_sum)
    end = replace(
        state.collected,
        met=met,
        accepted=survivors,
        lost=(*state.collected.lost, *lost),
        flagged=tuple((d, code) for d, code in faults.items() if d in in_sum and code != DROPPED),
        code=None if met else next(iter(failed), "E-SECAGG-FEW"),
        released=released,
        rungs={device: state.groups[number].rung for device, number in state.member.items()},
    )
    return end, (*effects, Close(met))


def _fault_codes(state: Exchanging, met: bool) -> dict[DeviceId, str]:
    """Map each device at fault to its code. A liar that also vanishes keeps the code of its lie. Where the round has a
    sum, devices whose group has none are lost with their group."""
    faults = dict[DeviceId, str]()
    for device, code in state.faults.values():
        if faults.get(device) not in NAMED:
            faults[device] = code
    if met:
        for device, number in state.member.items():
            if isinstance(aborted := state.groups[number].state, server_states.Aborted):
                faults.setdefault(device, aborted.code)
    return faults
