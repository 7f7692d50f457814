"""Aggregate a round's contributions, in the clear or under secure aggregation.

    PlainAggregation       the server decodes each contribution and adds it (``merges.plain``)
    TwoServerAggregation   each contribution is two sealed shares; the sum needs the helper's half
    MaskedAggregation      devices send keys first; four more exchanges give one sum, or one sum for each group:
                           groups dealt at random (``secagg.merge.grouped``), or sorted by what their devices can
                           send in time (``codec = "adaptive"``)

``take`` raises DecodeError for a contribution that is of no use; ``close`` gives the sum, who is in it, and who was
lost on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from edgewise.codecs import pack
from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.core.frame import Contribution, Invite, Step
from edgewise.core.keys import Key, Turn
from edgewise.core.stage import Sum
from edgewise.core.training import DeviceId
from edgewise.engine.ports import Arrived, Cohort, Helper, Lost, Trust
from edgewise.engine.round import DROPPED
from edgewise.engine.rung_groups import deal, sort
from edgewise.plan.compile import Plan
from edgewise.secagg import server, two_server
from edgewise.secagg.merge import Groups, total
from edgewise.secagg.recovery import NAMED


@dataclass(frozen=True)
class Gathered:
    """A round's sum.

    Attributes:
        sums: of the contributions of ``devices``, with the rung of each (-1: the codec is fixed); several only where
            devices were sorted by rungs; none where the protocol ended without one, ``code`` says why.
        rungs: of devices whose group was told one.
        lost: (device, code) of those who sent something and are not in the sum. flagged: of those who are in it, and
        lied or broke off later; mere silence is not flagged.
        bytes_up, bytes_down: device -> bytes of the messages after the first.
        encode_s: device seconds spent on them.
    """

    sums: tuple[tuple[int, Sum], ...]
    devices: tuple[DeviceId, ...]
    lost: tuple[tuple[DeviceId, str], ...] = ()
    flagged: tuple[tuple[DeviceId, str], ...] = ()
    bytes_up: Mapping[DeviceId, int] = field(default_factory=dict)
    bytes_down: Mapping[DeviceId, int] = field(default_factory=dict)
    encode_s: float = 0.0
    code: str = ""
    rungs: Mapping[DeviceId, int] = field(default_factory=dict)


class Aggregation(Protocol):
    """Where one round's contributions go."""

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """One contribution that counts; the number of the rung that it chose, -1 where there is no choice.

        Raises DecodeError; nothing has changed then.
        """
        ...

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """The sum over ``accepted``, all of whom ``take`` took; ``charge`` is called before it is opened."""
        ...


class PlainAggregation:
    """The server decodes each contribution and adds it."""

    def __init__(self, plan: Plan, turn: Turn) -> None:
        self._pipe, self._turn = plan.at(turn.round), turn
        self._total = self._pipe.start_sum()

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Aggregation."""
        if not isinstance(message, Contribution):
            raise DecodeError("E-FRAME", "a contribution is expected.")
        payload = pack.unpack(message.payload, self._pipe.encoded)
        self._total = self._pipe.add(self._total, payload, replace(self._turn, device=device))
        return payload.rung

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Aggregation."""
        charge()
        return Gathered(((-1, self._total),), tuple(accepted))


class TwoServerAggregation:
    """Two servers: this one is the leader."""

    def __init__(self, plan: Plan, invite: Invite, trust: Trust, secret: bytes, helper: Helper) -> None:
        params, context = plan.secagg(invite.round), plan.session(invite)
        self._helper, self._leader = helper, two_server.lead(params, context, secret, trust.registry)
        helper.begin(invite)

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Aggregation."""
        if not isinstance(message, Contribution):
            raise DecodeError("E-FRAME", "a contribution is expected.")
        ticket, share = two_server.open_report(self._leader, device, message.payload)
        if code := self._helper.admit(two_server.dump(ticket)):
            raise DecodeError(code, "the helper refuses the report.")
        self._leader = two_server.count(self._leader, ticket, share)
        return -1

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Aggregation."""
        charge()
        try:
            share = self._helper.open(accepted)
        except DecodeError as e:
            return Gathered((), (), code=e.code)
        hidden = self._leader.total
        hidden.add(share.body, share.head)
        summed = Sum(total(hidden.body, hidden.head, len(accepted)), len(accepted))
        return Gathered(((-1, summed),), tuple(accepted))


@dataclass
class _Group:
    """One session of masks: its state, when this step of it ends, and by which rung it sends (-1: no choice)."""

    state: server.State
    rung: int
    until_s: float = 0.0

    @property
    def open(self) -> bool:
        return not isinstance(self.state, server.Released | server.Aborted)


class MaskedAggregation:
    """One server that never sees an unmasked contribution.

    Each group of a cohort, mostly all of it, has a session of its own; the groups are dealt when the keys are in.
    ``deadline_s``: for the answers to each message. ``dealing``: decides the groups, and no device can know it before.
    """

    def __init__(self, plan: Plan, invite: Invite, trust: Trust, deadline_s: float, dealing: Key) -> None:
        assert plan.hides is not None
        session = server.Session(plan.secagg(invite.round), plan.session(invite), trust.registry)
        self._plan, self._round, self._deadline_s, self._dealing = plan, invite.round, deadline_s, dealing
        self._hides = plan.hides
        self._keys: server.State = server.start(session)
        self._groups: list[_Group] = []
        self._of: dict[DeviceId, _Group] = {}
        self._best: dict[DeviceId, int] = {}
        self._lost: dict[DeviceId, str] = {}
        self._up: Counter[DeviceId] = Counter()
        self._down: Counter[DeviceId] = Counter()
        self._encode_s = 0.0
        self._charged = False
        self._charge: Callable[[], None]

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Aggregation."""
        if not isinstance(message, Step):
            raise DecodeError("E-FRAME", "keys of secure aggregation are expected.")
        if message.rung not in (range(len(self._plan.ways)) if self._plan.ways else (-1,)):
            raise DecodeError("E-RUNG", "no rung of this run has that number.")
        self._keys, effects = server.step(self._keys, server.Received(device, message.body))
        for effect in effects:
            if isinstance(effect, server.Refused):
                raise DecodeError(effect.code, "the device's keys cannot be used.")
        self._best[device] = message.rung
        return -1

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Aggregation. With several groups the sum is of those that have one, if they are enough for the rule, and
        their devices for a round."""
        cohort.close_round(keep=frozenset(accepted))
        self._charge = charge
        assert isinstance(self._keys, server.Advertising)
        for rung, devices in self._dealt(accepted):
            params = self._plan.secagg(self._round, rung)
            group = _Group(server.part(self._keys, devices, params), rung)
            self._groups.append(group)
            self._of |= dict.fromkeys(devices, group)
            self._step(group, server.Close(), cohort)
        while running := [group for group in self._groups if group.open]:
            first = min(running, key=lambda group: group.until_s)
            item = cohort.receive(max(0.0, first.until_s - cohort.now_s()))
            if item is None or item.at_s > first.until_s:  # a device that floods the mailbox must not hold up a step
                self._step(first, server.Close(), cohort)
            if item is None:
                continue
            if (mine := self._of.get(item.device)) is not None and (event := self._event(mine, item)) is not None:
                self._step(mine, event, cohort)
        return self._gathered()

    def _dealt(self, accepted: Sequence[DeviceId]) -> list[tuple[int, list[DeviceId]]]:
        if not self._plan.ways:
            return [(-1, devices) for devices in deal(accepted, self._hides.groups, self._dealing)]
        best = {device: self._best[device] for device in accepted}
        least = self._plan.secagg(self._round, 0).n_min
        return sort(best, self._plan.sizes, self._plan.recipe.adaptive.groups, least, self._dealing)

    def _gathered(self) -> Gathered:
        ended = [(group.rung, group.state) for group in self._groups]
        released = [(rung, state) for rung, state in ended if isinstance(state, server.Released)]
        failed = [state.code for _, state in ended if isinstance(state, server.Aborted)]
        survivors = tuple(device for _, state in released for device in state.survivors)
        sums = [
            (rung, Sum(total(state.body, state.head, len(state.survivors)), len(state.survivors)))
            for rung, state in released
        ]
        if len(sums) < self._hides.least or len(survivors) < self._plan.sampling.minimum:
            sums, survivors = [], ()
        elif self._hides.groups > 1:
            sums = [(-1, Sum(Groups(tuple(part.acc for _, part in sums)), len(survivors)))]
        if sums:
            for device, group in self._of.items():
                if isinstance(group.state, server.Aborted):
                    self._lost.setdefault(device, group.state.code)
        there = set(survivors)
        lost = tuple((device, code) for device, code in self._lost.items() if device not in there)
        flagged = tuple((d, code) for d, code in self._lost.items() if d in there and code != DROPPED)
        code = "" if sums else next(iter(failed), "E-SECAGG-FEW")
        rungs = {device: group.rung for device, group in self._of.items()}
        return Gathered(tuple(sums), survivors, lost, flagged, self._up, self._down, self._encode_s, code, rungs)

    def _step(self, group: _Group, event: server.Event, cohort: Cohort) -> None:
        if isinstance(event, server.Close):
            for device in server.waiting_for(group.state):
                self._note(device, DROPPED)
        elif isinstance(event, server.Gone):
            self._note(event.device, DROPPED)
        before = type(group.state)
        group.state, effects = server.step(group.state, event)
        if type(group.state) is not before:
            group.until_s = cohort.now_s() + self._deadline_s
        if before is server.Signing and isinstance(group.state, server.Unmasking) and not self._charged:
            self._charge()  # the letters below ask for the shares that open the first sum
            self._charged = True
        for effect in effects:
            if isinstance(effect, server.Refused):
                self._note(effect.device, effect.code)
            else:
                to, rung = effect.device, group.rung
                letter = Step(run=self._plan.run, round=self._round, device=to, body=effect.raw, rung=rung)
                raw = frame.dump(letter)
                self._down[effect.device] += len(raw)
                cohort.send(effect.device, raw)

    def _note(self, device: DeviceId, code: str) -> None:
        """How a device was lost, or what it did. A liar that also vanishes stays one."""
        if self._lost.get(device) not in NAMED:
            self._lost[device] = code

    def _event(self, group: _Group, item: Arrived | Lost) -> server.Event | None:
        """What an arrival means to the protocol; late mail of other rounds, copies and rubbish mean nothing."""
        if isinstance(item, Lost):
            return server.Gone(item.device)
        try:
            message = frame.from_device(item.frame, self._plan.frame_limit_bytes)
        except DecodeError:
            return None
        if not isinstance(message, Step) or (message.run, message.round) != (self._plan.run, self._round):
            return None
        if message.device != item.device or not server.waits_for(group.state, item.device):
            return None
        self._up[item.device] += len(item.frame)
        self._encode_s += item.encode_s
        return server.Received(item.device, message.body)


def aggregation(
    plan: Plan, turn: Turn, invite: Invite, trust: Trust | None, secret: bytes, helper: Helper | None, groups: Key
) -> Aggregation:
    """The aggregation of the round that ``invite`` opens; ``secret``: with two servers the leader's HPKE key;
    ``groups``: with several groups, who is in which."""
    if plan.hides is None:
        return PlainAggregation(plan, turn)
    if trust is None:
        raise ValueError("hiding contributions needs to know who is enrolled")
    if plan.hides.servers == 2:
        if helper is None:
            raise ValueError("shared_sum needs a helper")
        return TwoServerAggregation(plan, invite, trust, secret, helper)
    return MaskedAggregation(plan, invite, trust, plan.sampling.deadline_s, groups)
