"""The second server of ``shared_sum`` in this process: the helper of ``secagg.two_server`` behind the engine's port.

    LocalHelper(plan, secret, registry)             in a simulation: in memory, beside the leader
    LocalHelper(plan, secret, registry, record)     in a gateway: its memory survives a crash

A record has every step before the answer to it leaves. So a helper that was killed gives the answers that it gave
before, and never the sum of a second batch.
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
from edgewise.engine.admission import refused
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.client import Registry
from edgewise.secagg.secrets import Hidden


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a ticket of this round. ``code``: empty where it counts. ``ticket``: empty once it is forgotten."""

    digest: bytes = field(repr=False)
    code: str
    ticket: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Kept:
    """What a record holds of a run.

    Attributes:
        ids: of the reports that counted, but those whose tickets are in ``answers``. opened: the last round whose batch
        was opened.
        invite: of this round. answers: in any order. batch: what was opened of this round: devices, and the share as
        ``two_server.dump_share`` has it.
    """

    ids: Iterable[bytes] = field(repr=False)
    opened: int | None
    invite: Invite | None
    answers: Sequence[Answer] = field(repr=False)
    batch: tuple[frozenset[DeviceId], bytes] | None = field(repr=False)


class Record(Protocol):
    """The durable memory of a helper, for one run. A change is on the disk when its method returns."""

    def load(self) -> Kept:
        """What was written last."""
        ...

    def begin(self, invite: Invite) -> None:
        """Begin a round. Its report ids, and those of all earlier ones, stay for ever; else the last one is over."""
        ...

    def answer(self, answer: Answer, id: bytes) -> None:
        """Write down how a ticket is answered. ``id``: of its report, empty where it has none."""
        ...

    def open(self, round: int, devices: Collection[DeviceId], share: bytes) -> None:
        """Write down the one batch of a round, with the share that opens it, and forget the tickets."""
        ...


class LocalHelper:
    """A helper in the server's own process: right for a simulation, and no protection by itself.

    ``plan`` is the helper's own, compiled from the recipe and the population. The leader's word counts for nothing but
    which invitation the devices got; were it another one, their signatures would not match. What a leader asks again
    changes nothing and is answered as before: it goes on after a stop.
    """

    def __init__(self, plan: Plan, secret: bytes, registry: Registry, record: Record | None = None) -> None:
        """``secret``: HPKE key of the run. ``record``: None where nothing needs to outlive this process."""
        self._plan, self._secret, self._registry, self._record = plan, secret, registry, record
        self._seen: AppendMap[bytes, None] = AppendMap()
        self._helper: two_server.HelperState | None = None
        self._refusal: str | None = "E-SECAGG-ORDER"  # of this round's tickets; at first no round has begun
        self._round: int | None = None  # this one
        self._opened: int | None = None  # the last one whose batch was opened
        self._invite: Invite | None = None  # of this round, and what was done in it
        self._answers: dict[bytes, str] = {}
        self._batch: tuple[frozenset[DeviceId], Hidden] | None = None
        if record is not None:
            self._restore(record.load())

    def begin(self, invite: Invite) -> None:
        """See Helper."""
        if invite == self._invite:
            return
        no, past = refused(self._plan, invite, answered=None), False
        if self._round is not None:
            past = invite.round < self._round or (self._opened is not None and invite.round <= self._opened)
        refusal = "E-SECAGG-ORDER" if past and no is None else no and no.code
        if refusal is None and self._record is not None:
            self._record.begin(invite)
        self._invite, self._answers, self._batch, self._helper = invite, {}, None, None
        self._refusal = refusal
        if refusal is None:
            self._helper = self._started(invite)

    def _started(self, invite: Invite) -> two_server.HelperState:
        self._round = invite.round
        params, context = self._plan.secagg(invite.round), self._plan.session(invite)
        return two_server.HelperState(params, context, self._secret, self._registry, self._seen)

    def admit(self, ticket: bytes) -> str | None:
        """See Helper."""
        digest = hashlib.sha256(ticket).digest()
        if digest in self._answers:
            return self._answers[digest] or None
        if self._helper is None:
            return self._refusal
        after, id, code = self._helper, b"", ""
        try:
            read = two_server.load(ticket)
            id, after = read.id, two_server.admit(self._helper, read)
        except DecodeError as e:
            code = e.code
        if self._record is not None:
            self._record.answer(Answer(digest, code, ticket), id)
        self._helper, self._seen = after, after.seen
        self._answers[digest] = code
        return code or None

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """See Helper."""
        if self._batch is not None and self._batch[0] == frozenset(devices):
            return self._batch[1]
        if self._helper is None:
            raise DecodeError(self._refusal or "E-SECAGG-ORDER", "the helper refused the round's invitation.")
        assert self._round is not None
        after, share = two_server.open_batch(self._helper, devices)
        if self._record is not None:
            self._record.open(self._round, frozenset(devices), two_server.dump_share(share))
        self._helper, self._opened = after, self._round
        self._batch = frozenset(devices), share
        return share

    def _restore(self, kept: Kept) -> None:
        """Go on where a helper stopped. Raises DecodeError where the record is not one that a helper wrote."""
        self._seen, self._opened, self._invite = AppendMap((id, None) for id in kept.ids), kept.opened, kept.invite
        if kept.invite is None:
            return
        self._helper, self._refusal = self._started(kept.invite), None
        for answer in kept.answers:
            if not answer.code and answer.ticket:
                self._helper = two_server.admit(self._helper, two_server.load(answer.ticket))
            self._answers[answer.digest] = answer.code
        self._seen = self._helper.seen
        if kept.batch is not None:
            devices, share = kept.batch
            self._helper = two_server.closed(self._helper)
            self._batch = devices, two_server.load_share(self._helper.params, share)
