"""What becomes of the contributions to a round: the server sees each and adds it, or secure aggregation hides it.

    Visible   unpack, decode, add                                      ``merges.plain``
    Masked    the first message is a device's keys; the sum comes after four more exchanges with those that sent some
    Shared    each contribution is two sealed shares; the sum comes with the helper's half

``take`` raises DecodeError for a contribution that is of no use; ``close`` gives the sum, who is in it, and who was
lost on the way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgewise.codecs import pack
from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.core.frame import Contribution, Invite, Step
from edgewise.core.keys import Turn
from edgewise.core.stage import Sum
from edgewise.engine.ports import Arrived, Cohort, DeviceId, Helper, Lost, Trust
from edgewise.engine.round import DROPPED
from edgewise.plan.compile import Plan
from edgewise.secagg import server, two_server
from edgewise.secagg.merge import total


@dataclass(frozen=True)
class Gathered:
    """A round's sum.

    Attributes:
        total: of the contributions of ``devices``; None where the protocol ended without one, ``code`` says why.
        lost: (device, code) of those who sent something and are not in the sum.
        bytes_up, bytes_down: device -> bytes of the messages after the first.
        encode_s: device seconds spent on them.
    """

    total: Sum | None
    devices: tuple[DeviceId, ...]
    lost: tuple[tuple[DeviceId, str], ...] = ()
    bytes_up: Mapping[DeviceId, int] = field(default_factory=dict)
    bytes_down: Mapping[DeviceId, int] = field(default_factory=dict)
    encode_s: float = 0.0
    code: str = ""


class Intake(Protocol):
    """Where one round's contributions go."""

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """One contribution that counts; the number of the rung that it chose, -1 where there is no choice.

        Raises DecodeError; nothing has changed then.
        """
        ...

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """The sum over ``accepted``, all of whom ``take`` took; ``charge`` is called before it is opened."""
        ...


class Visible:
    """The server decodes each contribution and adds it."""

    def __init__(self, plan: Plan, turn: Turn) -> None:
        self._pipe, self._turn = plan.at(turn.round), turn
        self._total = self._pipe.start_sum()

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Intake."""
        if not isinstance(message, Contribution):
            raise DecodeError("E-FRAME", "a contribution is expected.")
        payload = pack.unpack(message.payload, self._pipe.encoded)
        self._total = self._pipe.add(self._total, payload, self._turn)
        return payload.rung

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Intake."""
        charge()
        return Gathered(self._total, tuple(accepted))


class Shared:
    """Two servers: this one is the leader."""

    def __init__(self, plan: Plan, invite: Invite, trust: Trust, secret: bytes, helper: Helper) -> None:
        params, context = plan.secagg(invite.round), plan.session(invite)
        self._helper, self._leader = helper, two_server.lead(params, context, secret, trust.registry)
        helper.begin(params, context)

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Intake."""
        if not isinstance(message, Contribution):
            raise DecodeError("E-FRAME", "a contribution is expected.")
        ticket, share = two_server.open_report(self._leader, device, message.payload)
        if code := self._helper.admit(ticket):
            raise DecodeError(code, "the helper refuses the report.")
        self._leader = two_server.count(self._leader, ticket, share)
        return -1

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Intake."""
        charge()
        try:
            share = self._helper.open(accepted)
        except DecodeError as e:
            return Gathered(None, (), code=e.code)
        hidden = self._leader.total
        hidden.add(share.body, share.head)
        return Gathered(Sum(total(hidden.body, hidden.head, len(accepted)), len(accepted)), tuple(accepted))


class Masked:
    """One server that never sees an unmasked contribution. ``deadline_s``: for the answers to each message."""

    def __init__(self, plan: Plan, invite: Invite, trust: Trust, deadline_s: float) -> None:
        session = server.Session(plan.secagg(invite.round), plan.session(invite), trust.registry)
        self._plan, self._round, self._deadline_s = plan, invite.round, deadline_s
        self._state: server.State = server.start(session)
        self._lost: dict[DeviceId, str] = {}
        self._up: Counter[DeviceId] = Counter()
        self._down: Counter[DeviceId] = Counter()
        self._encode_s = 0.0
        self._charge: Callable[[], None]

    def take(self, device: DeviceId, message: Contribution | Step) -> int:
        """See Intake."""
        if not isinstance(message, Step):
            raise DecodeError("E-FRAME", "keys of secure aggregation are expected.")
        self._state, effects = server.step(self._state, server.Received(device, message.body))
        for effect in effects:
            if isinstance(effect, server.Refused):
                raise DecodeError(effect.code, "the device's keys cannot be used.")
        return -1

    def close(self, accepted: Sequence[DeviceId], cohort: Cohort, charge: Callable[[], None]) -> Gathered:
        """See Intake."""
        cohort.close_round(keep=frozenset(accepted))
        self._charge = charge
        self._step(server.Close(), cohort)
        while not isinstance(self._state, server.Released | server.Aborted):
            phase, until_s = type(self._state), cohort.now_s() + self._deadline_s
            while type(self._state) is phase:
                item = cohort.receive(max(0.0, until_s - cohort.now_s()))
                for event in self._events(item):
                    self._step(event, cohort)
        survivors = self._state.survivors if isinstance(self._state, server.Released) else ()
        lost = tuple((device, code) for device, code in self._lost.items() if device not in survivors)
        summed, code, n = None, "", len(survivors)
        if isinstance(self._state, server.Aborted):
            code = self._state.code
        else:
            summed = Sum(total(self._state.body, self._state.head, n), n)
        return Gathered(summed, survivors, lost, self._up, self._down, self._encode_s, code)

    def _step(self, event: server.Event, cohort: Cohort) -> None:
        if isinstance(event, server.Close):
            self._lost |= dict.fromkeys(server.waiting_for(self._state), DROPPED)
        elif isinstance(event, server.Gone):
            self._lost[event.device] = DROPPED
        before = type(self._state)
        self._state, effects = server.step(self._state, event)
        if before is server.Signing and isinstance(self._state, server.Unmasking):
            self._charge()  # the letters below ask for the shares that open the sum
        for effect in effects:
            if isinstance(effect, server.Refused):
                self._lost[effect.device] = effect.code
            else:
                letter = Step(run=self._plan.run, round=self._round, device=effect.device, body=effect.raw)
                raw = frame.dump(letter)
                self._down[effect.device] += len(raw)
                cohort.send(effect.device, raw)

    def _events(self, item: Arrived | Lost | None) -> tuple[server.Event, ...]:
        """What an arrival means to the protocol; late mail of other rounds, copies and rubbish mean nothing."""
        if item is None:
            return (server.Close(),)
        if isinstance(item, Lost):
            return (server.Gone(item.device),)
        try:
            message = frame.load(item.frame, self._plan.frame_limit_bytes)
        except DecodeError:
            return ()
        if not isinstance(message, Step) or (message.run, message.round) != (self._plan.run, self._round):
            return ()
        if message.device != item.device or item.device not in server.waiting_for(self._state):
            return ()
        self._up[item.device] += len(item.frame)
        self._encode_s += item.encode_s
        return (server.Received(item.device, message.body),)


def intake(plan: Plan, turn: Turn, invite: Invite, trust: Trust | None, secret: bytes, helper: Helper | None) -> Intake:
    """The intake of the round that ``invite`` opens; ``secret``: with two servers the leader's HPKE key."""
    if plan.hides is None:
        return Visible(plan, turn)
    if trust is None:
        raise ValueError("hiding contributions needs to know who is enrolled")
    if plan.hides.servers == 2:
        if helper is None:
            raise ValueError("shared_sum needs a helper")
        return Shared(plan, invite, trust, secret, helper)
    return Masked(plan, invite, trust, plan.sampling.deadline_s)
