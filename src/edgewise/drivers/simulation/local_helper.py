"""The helper of ``shared_sum`` in the server's own process (``secagg.two_server`` behind the engine's port).

    LocalHelper(plan, secret, trust)                        in a simulation: in memory, beside the leader
    LocalHelper(plan, secret, trust, registry, record)      in a gateway: its memory survives a crash

A record has every step before the answer to it leaves. So a killed helper repeats its earlier answers and never gives
the sum of a second batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import DecodeError
from edgewise.core.frame import Invite
from edgewise.core.training import DeviceId
from edgewise.engine import beacon as beacons
from edgewise.engine.admission import invitation_refusal
from edgewise.engine.ports import Trust
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.client import Registry
from edgewise.secagg.secrets import Hidden


@dataclass(frozen=True, slots=True)
class TicketAnswer:
    """The answer to a ticket of this round.

    Attributes:
        digest: SHA-256 of the ticket.
        code: of the refusal. None where the ticket counts.
        ticket: None once it is forgotten.
    """

    digest: bytes = field(repr=False)
    code: str | None
    ticket: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class HelperMemory:
    """The content of a record for one run.

    Attributes:
        ids: ids of counted reports, except those whose tickets are in ``answers``.
        opened: the last round whose batch was opened.
        invite: the invitation of this round.
        answers: the answers of this round, in any order.
        batch: the opened batch of this round: devices, and the share in the form of ``two_server.dump_share``.
        beacon: the blob that this round's cohort is drawn from. None where the server draws it alone.
    """

    ids: Iterable[bytes] = field(repr=False)
    opened: int | None
    invite: Invite | None
    answers: Sequence[TicketAnswer] = field(repr=False)
    batch: tuple[frozenset[DeviceId], bytes] | None = field(repr=False)
    beacon: bytes | None = field(default=None, repr=False)


class HelperRecord(Protocol):
    """The durable memory of a helper, for one run. A change is on the disk when its method returns."""

    def load(self) -> HelperMemory:
        """Return the newest content of the simulated helper's record."""
        ...

    def begin(self, invite: Invite, beacon: bytes | None) -> None:
        """Begin a round. Forget the last round, but keep the report ids of all rounds for ever."""
        ...

    def answer(self, answer: TicketAnswer, id: bytes | None) -> None:
        """Write down the answer to a ticket. ``id``: of its report. None where it cannot be read."""
        ...

    def open(self, round: int, devices: Collection[DeviceId], share: bytes) -> None:
        """Write down the one batch of a round, with the share that opens it, and forget the tickets."""
        ...


class LocalHelper:
    """A helper in the server's own process. It suits a simulation and is no protection by itself.

    ``plan`` is the helper's own, compiled from the recipe and the population. The helper believes the leader in one
    point only: which invitation the devices got. With another invitation their signatures would not match. A repeated
    question of the leader changes nothing and gets the same answer, so the leader can continue after a stop.
    """

    def __init__(
        self,
        plan: Plan,
        secret: bytes,
        trust: Trust,
        registry: Registry | None = None,
        record: HelperRecord | None = None,
    ) -> None:
        """Begin before any round.

        Args:
            secret: HPKE key of the run.
            trust: keys and roster of the run's devices. Cohorts that devices verify are drawn from them.
            registry: keys of the devices that count. None: of all.
            record: durable memory; None where nothing needs to outlive this process.
        """
        self.plan = plan
        self._secret, self._trust, self._record = secret, trust, record
        self._registry = trust.registry if registry is None else registry
        self._seen: AppendMap[bytes, None] = AppendMap()
        self._helper: two_server.HelperState | None = None
        self._refusal: str | None = "E-SECAGG-ORDER"  # the code for this round's tickets; no round has begun yet
        self._round: int | None = None  # the round in progress
        self._opened: int | None = None  # the last round whose batch was opened
        self._invite: Invite | None = None  # this round's invitation, answers and batch follow
        self._answers: dict[bytes, str | None] = {}
        self._batch: tuple[frozenset[DeviceId], Hidden] | None = None
        if record is not None:
            self._restore_helper(record.load())

    def begin(self, invite: Invite, beacon: bytes | None = None) -> None:
        """See Helper."""
        if invite == self._invite:
            return
        refusal, over, helper = invitation_refusal(self.plan, invite, answered=None), False, None
        if self._round is not None:
            over = invite.round < self._round or (self._opened is not None and invite.round <= self._opened)
        code = "E-SECAGG-ORDER" if over and refusal is None else refusal and refusal.code
        if code is None:
            try:
                helper = self._started_helper(invite, beacon)
            except DecodeError as e:
                code = e.code
        if helper is not None and self._record is not None:
            self._record.begin(invite, beacon)
        self._invite, self._answers, self._batch, self._helper, self._refusal = invite, {}, None, helper, code
        if helper is not None:
            self._round = invite.round

    def _started_helper(self, invite: Invite, beacon: bytes | None) -> two_server.HelperState:
        """Start the helper of a round. Raises DecodeError as ``beacons.cohort``, for a cohort that was not drawn."""
        members = None
        if self.plan.contributors:
            members = beacons.cohort(self.plan, self._trust, invite.draw, invite.round, beacon)
        params, context = self.plan.secagg(invite.round), self.plan.session(invite)
        registry = beacons.within(self._registry, members)
        return two_server.HelperState(params, context, self._secret, registry, self._seen)

    def admit(self, ticket: bytes) -> str | None:
        """See Helper."""
        digest = hashlib.sha256(ticket).digest()
        if digest in self._answers:
            return self._answers[digest]
        if self._helper is None:
            return self._refusal
        helper, id, code = self._helper, None, None
        try:
            read = two_server.load_ticket(ticket)
            id, helper = read.id, two_server.admit_share_report(self._helper, read)
        except DecodeError as e:
            code = e.code
        if self._record is not None:
            self._record.answer(TicketAnswer(digest, code, ticket), id)
        self._helper, self._seen = helper, helper.seen
        self._answers[digest] = code
        return code

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """See Helper."""
        if self._batch is not None and self._batch[0] == frozenset(devices):
            return self._batch[1]
        if self._helper is None:
            raise DecodeError(self._refusal or "E-SECAGG-ORDER", "the helper refused the round's invitation.")
        assert self._round is not None
        helper, share = two_server.open_helper_batch(self._helper, devices)
        if self._record is not None:
            self._record.open(self._round, frozenset(devices), two_server.dump_share(share))
        self._helper, self._opened = helper, self._round
        self._batch = frozenset(devices), share
        return share

    def _restore_helper(self, memory: HelperMemory) -> None:
        """Continue where a helper stopped. Raises DecodeError where no helper wrote the record."""
        self._seen, self._opened, self._invite = (
            AppendMap((id, None) for id in memory.ids),
            memory.opened,
            memory.invite,
        )
        if memory.invite is None:
            return
        self._helper, self._refusal = self._started_helper(memory.invite, memory.beacon), None
        self._round = memory.invite.round
        for answer in memory.answers:
            if answer.code is None and answer.ticket is not None:
                self._helper = two_server.admit_share_report(self._helper, two_server.load_ticket(answer.ticket))
            self._answers[answer.digest] = answer.code
        self._seen = self._helper.seen
        if memory.batch is not None:
            devices, share = memory.batch
            self._helper = two_server.closed_helper_batch(self._helper)
            self._batch = devices, two_server.load_share(self._helper.params, share)
