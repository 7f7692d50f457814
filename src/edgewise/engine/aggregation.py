"""Aggregation of a round's contributions, in the clear or under secure aggregation.

    PlainAggregation       the server decodes each contribution and adds it (``merges.plain``)
    TwoServerAggregation   each contribution is two sealed shares, and the sum needs the helper's half
    MaskedAggregation      the sums are those of the masked sessions, which are states of the round itself: one session,
                           or one for each group (``secagg.merge.grouped``, ``codec = "adaptive"``)

An aggregation follows from the round's log, as the round's state does. After a stop the log is folded again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from edgewise.codecs.wire import pack
from edgewise.core.errors import DecodeError
from edgewise.core.frame import Contribution
from edgewise.core.keys import Key
from edgewise.core.stage import Sum
from edgewise.core.training import DeviceId
from edgewise.engine.ports import Helper, Trust
from edgewise.engine.round_facts import RoundFacts
from edgewise.engine.round_states import Closed, Masks, TwoServers
from edgewise.secagg import two_server
from edgewise.secagg.merge import MaskedGroups, unmasked_total

Sums = tuple[tuple[int | None, Sum], ...]  # (rung, sum). There are several only where devices are sorted by rungs.


class Aggregation(Protocol):
    """Running sum of one round's contributions."""

    def fold(self, device: DeviceId, message: Contribution) -> int | None:
        """Add one contribution. Returns the number of the rung that it chose, None where there is no choice.

        Raises DecodeError for an unusable contribution. The sum is then unchanged.
        """
        ...

    def open(self, devices: Sequence[DeviceId]) -> None:
        """Add the helper's half of the sum over ``devices``. Raises DecodeError where the helper refuses."""
        ...

    def sums(self, closed: Closed) -> Sums:
        """Hand out the sums of a round that is met. The aggregation must not be used afterwards."""
        ...


class PlainAggregation:
    """Aggregation in the clear: the server decodes each contribution and adds it."""

    def __init__(self, facts: RoundFacts) -> None:
        self._pipe, self._facts = facts.pipe, facts
        self._total = self._pipe.start_sum()

    def fold(self, device: DeviceId, message: Contribution) -> int | None:
        """See Aggregation."""
        payload = pack.unpack(message.payload, self._pipe.encoded)
        turn, scale = self._facts.share(message.round)
        self._total = self._pipe.add(self._total, payload, replace(turn, device=device), scale)
        return payload.rung

    def open(self, devices: Sequence[DeviceId]) -> None:
        """Raise ValueError, because there is no helper."""
        raise ValueError("a sum in the clear has no halves")

    def sums(self, closed: Closed) -> Sums:
        """See Aggregation."""
        return ((None, self._total),)


class TwoServerAggregation:
    """Aggregation with two servers, of which this one is the leader. ``secret``: its HPKE key.

    The leader's shares exist as sums in memory only. The log has the reports as they arrived, sealed.
    """

    def __init__(self, facts: RoundFacts, trust: Trust, secret: bytes, helper: Helper) -> None:
        assert facts.secagg is not None
        assert facts.session is not None
        self._helper, self._leader = (
            helper,
            two_server.lead_two_servers(facts.secagg, facts.session, secret, trust.registry),
        )
        helper.begin(facts.invite, facts.beacon)

    def fold(self, device: DeviceId, message: Contribution) -> int | None:
        """See Aggregation."""
        ticket, share = two_server.open_share_report(self._leader, device, message.payload)
        if (code := self._helper.admit(two_server.dump_ticket(ticket))) is not None:
            raise DecodeError(code, "the helper refuses the report.")
        self._leader = two_server.add_leader_share(self._leader, ticket, share)
        return None

    def open(self, devices: Sequence[DeviceId]) -> None:
        """See Aggregation."""
        share = self._helper.open(devices)
        self._leader.total.add(share.body, share.head)

    def sums(self, closed: Closed) -> Sums:
        """See Aggregation."""
        opened, n = self._leader.total, len(closed.accepted)
        return ((None, Sum(unmasked_total(opened.body, opened.head, n), n)),)


class MaskedAggregation:
    """Aggregation with one server that never sees an unmasked contribution. A rule between groups gets all sums."""

    def __init__(self, facts: RoundFacts) -> None:
        assert isinstance(facts.protocol, Masks)
        self._together = facts.protocol.groups > 1 and not facts.protocol.rungs

    def fold(self, device: DeviceId, message: Contribution) -> int | None:
        """Refuse a contribution that the server could read."""
        raise DecodeError("E-FRAME", "keys of secure aggregation were expected.")

    def open(self, devices: Sequence[DeviceId]) -> None:
        """Raise ValueError, because there is no helper."""
        raise ValueError("a masked sum has no halves")

    def sums(self, closed: Closed) -> Sums:
        """See Aggregation."""
        sums = tuple(
            (rung, Sum(unmasked_total(opened.body, opened.head, len(opened.survivors)), len(opened.survivors)))
            for rung, opened in closed.released
        )
        if not self._together:
            return sums
        return ((None, Sum(MaskedGroups(tuple(part.acc for _, part in sums)), len(closed.accepted))),)


def aggregation(facts: RoundFacts, trust: Trust | None, secret: Key | None, helper: Helper | None) -> Aggregation:
    """Make the aggregation of a round by its protocol. ``secret``: with two servers the leader's HPKE key."""
    match facts.protocol:
        case None:
            return PlainAggregation(facts)
        case Masks():
            return MaskedAggregation(facts)
        case TwoServers():
            if trust is None or helper is None or secret is None:
                raise ValueError("shared_sum needs to know who is enrolled, a helper, and the leader's own secret")
            return TwoServerAggregation(facts, trust, secret, helper)
