"""Shares with two servers: exact sums, one batch, and nothing that a single server could open."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from session import IDENTITIES, ROOT, registry

from edgewise.core.errors import DecodeError
from edgewise.core.keys import derive
from edgewise.secagg import messages, two_server
from edgewise.secagg.params import Params, TrustPolicy
from edgewise.secagg.secrets import fresh_secret
from edgewise.secagg.two_server import HelperState, HelperTicket

P = Params(TrustPolicy(), 3, 20, 50, 2)
CONTEXT = messages.secagg_session_id("task", 0, "model", "config", bytes(32))
LEADER, HELPER = (two_server.server_pair(derive(ROOT, who)) for who in ("leader", "helper"))
DEVICES = list(IDENTITIES)[:5]
RNG = np.random.default_rng(5)
XS = {d: RNG.integers(0, 1 << 20, 50, dtype=np.uint32) for d in DEVICES}
HS = {d: RNG.integers(0, 1 << 63, 2, dtype=np.uint64) for d in DEVICES}


def report(device: str, context: bytes = CONTEXT, attempt: int = 0) -> bytearray:
    return two_server.split(
        P, context, device, IDENTITIES[device].secret, LEADER.public, HELPER.public, XS[device], HS[device],
        derive(ROOT, device, attempt),
    )  # fmt: skip


def servers() -> tuple[two_server.LeaderState, HelperState]:
    return two_server.lead_two_servers(P, CONTEXT, LEADER.secret, registry), HelperState(
        P, CONTEXT, HELPER.secret, registry
    )


def refused(code: str, attempt: object) -> None:
    with pytest.raises(DecodeError) as caught:
        attempt()  # type: ignore[operator]
    assert caught.value.code == code


def test_the_sum_is_exact_and_opened_once() -> None:
    lead, helper = servers()
    for d in DEVICES:
        ticket, share = two_server.open_share_report(lead, d, report(d))
        assert not np.array_equal(share.body, XS[d])
        helper = two_server.admit_share_report(helper, ticket)
        lead = two_server.add_leader_share(lead, ticket, share)
    after, share = two_server.open_helper_batch(helper, lead.counted)
    lead.total.add(share.body, share.head)
    np.testing.assert_array_equal(lead.total.body, sum(x.astype(np.uint64) for x in XS.values()) % (1 << 20))
    np.testing.assert_array_equal(lead.total.head, np.sum(list(HS.values()), axis=0))
    assert not after.seeds
    refused("E-SECAGG-ORDER", lambda: two_server.open_helper_batch(after, DEVICES[:3]))
    refused("E-SECAGG-ORDER", lambda: two_server.admit_share_report(after, ticket))


def test_batches_below_the_minimum_stay_closed() -> None:
    lead, helper = servers()
    for d in DEVICES[:2]:
        helper = two_server.admit_share_report(helper, two_server.open_share_report(lead, d, report(d))[0])
    refused("E-SECAGG-FEW", lambda: two_server.open_helper_batch(helper, DEVICES[:2]))
    refused("E-SECAGG-FEW", lambda: two_server.open_helper_batch(helper, [DEVICES[0]] * 5))
    refused("E-SECAGG-ORDER", lambda: two_server.open_helper_batch(helper, DEVICES[:3]))


def test_replays_are_refused() -> None:
    lead, helper = servers()
    raw = report(DEVICES[0])
    ticket, share = two_server.open_share_report(lead, DEVICES[0], raw)
    helper = two_server.admit_share_report(helper, ticket)
    lead = two_server.add_leader_share(lead, ticket, share)
    refused("E-SECAGG-ORDER", lambda: two_server.open_share_report(lead, DEVICES[0], report(DEVICES[0], attempt=1)))
    refused("E-SECAGG-ORDER", lambda: two_server.admit_share_report(helper, ticket))
    later = HelperState(
        P, messages.secagg_session_id("task", 1, "m", "c", bytes(32)), HELPER.secret, registry, helper.seen
    )
    refused("E-SECAGG-ORDER", lambda: two_server.admit_share_report(later, ticket))


def test_other_models_and_configurations_are_refused() -> None:
    lead, helper = servers()
    other = messages.secagg_session_id("task", 0, "another model", "config", bytes(32))
    refused("E-SECAGG-KEYS", lambda: two_server.open_share_report(lead, DEVICES[0], report(DEVICES[0], other)))
    elsewhere = two_server.lead_two_servers(P, other, LEADER.secret, registry)
    ticket, _ = two_server.open_share_report(elsewhere, DEVICES[0], report(DEVICES[0], other))
    refused("E-SECAGG-KEYS", lambda: two_server.admit_share_report(helper, ticket))


def test_a_leader_cannot_invent_reports() -> None:
    """A forged report is refused: one under a device's name with another key, or with another device's box."""
    lead, helper = servers()
    ticket, _ = two_server.open_share_report(lead, DEVICES[0], report(DEVICES[0]))
    refused(
        "E-SECAGG-KEYS",
        lambda: two_server.admit_share_report(helper, msgspec.structs.replace(ticket, device=DEVICES[1])),
    )
    refused(
        "E-SECAGG-KEYS",
        lambda: two_server.admit_share_report(helper, msgspec.structs.replace(ticket, device="stranger")),
    )
    fresh = HelperTicket(
        device=DEVICES[1], id=ticket.id, leader=ticket.leader, helper=ticket.helper, signature=bytes(64)
    )
    refused("E-SECAGG-KEYS", lambda: two_server.admit_share_report(helper, fresh))


def test_damage_is_refused() -> None:
    """Every bit of a report counts, and nothing may follow it."""
    lead, helper = servers()
    raw = bytes(report(DEVICES[0]))
    codes = set()
    for at in range(len(raw)):
        bad = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(DecodeError) as caught:
            two_server.admit_share_report(helper, two_server.open_share_report(lead, DEVICES[0], bad)[0])
        codes.add(caught.value.code)
    assert codes == {"E-FRAME", "E-SECAGG-KEYS", "E-SEAL"}
    refused("E-FRAME", lambda: two_server.open_share_report(lead, DEVICES[0], b""))
    refused("E-SECAGG-KEYS", lambda: two_server.open_share_report(lead, DEVICES[0], raw + b"\x00"))
    refused("E-SECAGG-KEYS", lambda: two_server.open_share_report(lead, DEVICES[0], raw[:-1]))


def test_a_share_of_another_size_is_refused() -> None:
    """A well signed and sealed report of another dimension is refused."""
    lead, _ = servers()
    other = Params(P.policy, P.n_min, P.bits, P.dim + 1, P.heads)
    raw = two_server.split(
        other, CONTEXT, DEVICES[0], IDENTITIES[DEVICES[0]].secret, LEADER.public, HELPER.public,
        np.zeros(P.dim + 1, np.uint32), HS[DEVICES[0]], derive(ROOT, "other"),
    )  # fmt: skip
    refused("E-PAYLOAD", lambda: two_server.open_share_report(lead, DEVICES[0], raw))


def test_no_secret_is_printed() -> None:
    lead, helper = servers()
    ticket, _ = two_server.open_share_report(lead, DEVICES[0], report(DEVICES[0]))
    helper = two_server.admit_share_report(helper, ticket)
    text = repr(lead) + repr(helper)
    for secret in (
        LEADER.secret,
        HELPER.secret,
        fresh_secret(derive(ROOT, DEVICES[0], 0), CONTEXT, "share", DEVICES[0]),
    ):
        assert secret.hex() not in text
        assert repr(secret)[2:-1] not in text
