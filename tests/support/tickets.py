"""Devices of a run with two servers that send their reports to nobody: what a gateway gets of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgewise.core.frame import Invite
from edgewise.core.keys import derive, root
from edgewise.crypto import sign
from edgewise.crypto.agree import AgreementPair
from edgewise.drivers.fleet import roster
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.secrets import Hidden

IDENTITIES = {key_fingerprint(pair.public): pair for pair in (sign.pair(derive(root(5), i)) for i in range(5))}
DEVICES = sorted(IDENTITIES)
LEADER = two_server.server_pair(derive(root(5), "leader"))
ROSTER = roster.dump([pair.public for pair in IDENTITIES.values()])


def registry(device: str) -> bytes | None:
    """The public key of a device."""
    found = IDENTITIES.get(device)
    return None if found is None else found.public


def invite(plan: Plan, round: int = 0, nonce: bytes = b"A" * 32) -> Invite:
    """An invitation of the plan's."""
    return Invite(
        run=plan.run, round=round, spec=plan.spec.digest(), model="0" * 64, public=plan.public(round), accepted=None,
        deadline_s=60.0, rule=plan.rule(round), nonce=nonce,
    )  # fmt: skip


@dataclass
class Round:
    """The reports of all devices for one invitation. ``key``: to which they seal the helper's shares."""

    plan: Plan
    told: Invite
    key: bytes
    values: dict[str, int] = field(default_factory=lambda: {device: i for i, device in enumerate(DEVICES)})

    def __post_init__(self) -> None:
        self.params, self.context = self.plan.secagg(self.told.round), self.plan.session(self.told)
        self.leader = two_server.lead_two_servers(self.params, self.context, LEADER.secret, registry)

    def ticket(self, device: str, signer: AgreementPair | None = None) -> bytes:
        """A device's ticket; its share is added to the leader's."""
        body = np.full(self.params.dim, self.values[device], np.uint32)
        raw = two_server.split(
            self.params, self.context, device, (signer or IDENTITIES[device]).secret, LEADER.public, self.key, body,
            np.ones(self.params.heads, np.uint64), derive(root(6), device, self.told.nonce),
        )  # fmt: skip
        ticket, share = two_server.open_share_report(self.leader, device, raw)
        self.leader = two_server.add_leader_share(self.leader, ticket, share)
        return two_server.dump_ticket(ticket)

    def opened(self, share: Hidden) -> int:
        """The sum of all that was sent, which is the same in every coordinate."""
        total = Hidden(self.params, self.leader.total.body, self.leader.total.head)
        total.add(share.body, share.head)
        assert len(set(total.body.tolist())) == 1
        return int(total.body[0])
