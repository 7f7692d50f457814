"""The second server of ``shared_sum`` in this process: the helper of ``secagg.two_server`` behind the engine's port."""

from __future__ import annotations

from collections.abc import Collection

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import DecodeError
from edgewise.core.frame import Invite
from edgewise.core.training import DeviceId
from edgewise.engine.invitation import refused
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.client import Registry
from edgewise.secagg.secrets import Hidden


class LocalHelper:
    """A helper in the server's own process: right for a simulation, and no protection by itself.

    ``plan`` is the helper's own, compiled from the recipe and the population. The leader's word counts for nothing but
    which invitation the devices got; were it another one, their signatures would not match. What a leader asks again
    changes nothing and is answered as before: it goes on after a stop.
    """

    def __init__(self, plan: Plan, secret: bytes, registry: Registry) -> None:
        self._plan, self._secret, self._registry = plan, secret, registry
        self._seen: AppendMap[bytes, None] = AppendMap()
        self._helper: two_server.Helper | None = None
        self._refusal: str | None = "E-SECAGG-ORDER"  # of this round's tickets; at first no round has begun
        self._round: int | None = None  # this one
        self._opened: int | None = None  # the last one whose batch was opened
        self._invite: Invite | None = None  # of this round, and what was done in it
        self._admitted: set[bytes] = set()
        self._batch: tuple[frozenset[DeviceId], Hidden] | None = None

    def begin(self, invite: Invite) -> None:
        """See Helper."""
        if invite == self._invite:
            return
        self._invite, self._admitted, self._batch = invite, set(), None
        self._helper = None
        no, past = refused(self._plan, invite, answered=None), False
        if self._round is not None:
            past = invite.round < self._round or (self._opened is not None and invite.round <= self._opened)
        self._refusal = "E-SECAGG-ORDER" if past and no is None else no and no.code
        if self._refusal is not None:
            return
        self._round = invite.round
        params, context = self._plan.secagg(invite.round), self._plan.session(invite)
        self._helper = two_server.Helper(params, context, self._secret, self._registry, self._seen)

    def admit(self, ticket: bytes) -> str | None:
        """See Helper."""
        if ticket in self._admitted:
            return None
        if self._helper is None:
            return self._refusal
        try:
            self._helper = two_server.admit(self._helper, two_server.load(ticket))
        except DecodeError as e:
            return e.code
        self._seen = self._helper.seen
        self._admitted.add(ticket)
        return None

    def open(self, devices: Collection[DeviceId]) -> Hidden:
        """See Helper."""
        if self._batch is not None and self._batch[0] == frozenset(devices):
            return self._batch[1]
        if self._helper is None:
            raise DecodeError(self._refusal or "E-SECAGG-ORDER", "the helper refused the round's invitation.")
        self._helper, share = two_server.open_batch(self._helper, devices)
        self._opened = self._round
        self._batch = frozenset(devices), share
        return share
