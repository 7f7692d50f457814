"""A server that lies to its gateway: two batches, invented devices, other facts; also across a restart of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from served import code
from tickets import DEVICES, IDENTITIES, ROSTER, Round, invite, registry
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.gateway.start import Gateway
from edgewise.core import frame, vector
from edgewise.core.errors import DecodeError
from edgewise.crypto import sign
from edgewise.drivers.fleet import members, roster
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.http import home, identity, share_keys
from edgewise.drivers.http.helper_routes import LEADER
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.identity import Identity
from edgewise.drivers.http.remote_helper import RemoteHelper
from edgewise.engine import beacon
from edgewise.engine.ports import Trust
from edgewise.plan import facts
from edgewise.plan.acceptance import OwnerFloor
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import Instance
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server
from edgewise.secagg.params import Floor

SHARES: dict[str, Any] = {
    "privacy": "hidden",
    "merge": {"kind": "shared_sum"},
    "stage": [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}],
    "trust.malicious_fraction": 0.0,
    "round.minimum": 0.6,
    "round.rounds": 3,
}


def plan_of(server: Identity, **overrides: Any) -> Plan:
    recipe = make_recipe({"data.devices": 5, **SHARES, **overrides})
    instance = Instance(server=server.public.hex(), nonce="00" * 32, roster=vector.digest(ROSTER))
    return compile(recipe, ToyTrainer(recipe, DEVICES).spec, 5, BUILT_IN, instance=instance)


@pytest.fixture
def server(tmp_path: Path) -> Identity:
    return identity.make(tmp_path / "server.key")


@pytest.fixture
def folder(server: Identity, tmp_path: Path) -> Path:
    """Of a gateway that has joined this server, and lists all devices but the last."""
    folder = tmp_path / "gateway"
    name = identity.make(folder / home.KEY).name
    home.save(folder, Home("https://127.0.0.1:1", server.name, "", name))
    database = Database(folder)
    database.write(lambda c: members.admit_member(c, server.public, LEADER, 0.0))
    database.close()
    (folder / "devices.txt").write_text("# these\n" + "\n".join(DEVICES[:4]) + "\n")
    return folder


@pytest.fixture
def connect(server: Identity, folder: Path) -> Iterator[Callable[..., RemoteHelper]]:
    """Start the gateway anew, as after a crash, and connect to it."""
    running: list[RemoteHelper | Gateway] = []

    def end() -> None:
        while running:
            running.pop().close()

    def anew(
        plan: Plan,
        me: Identity = server,
        floor: OwnerFloor = OwnerFloor(),  # noqa: B008 (frozen)
        roster: bytes = ROSTER,
    ) -> RemoteHelper:
        end()
        running.append(made := Gateway(folder, floor=floor))
        helper = RemoteHelper.connect(made.name, made.url, me, plan, roster, 5.0)
        running.append(helper)
        return helper

    yield anew
    end()


def refused(helper: RemoteHelper, devices: list[str]) -> str:
    return code(helper.open, devices)


@pytest.mark.slow
def test_a_batch_is_opened_once_also_after_a_restart(server: Identity, connect: Callable[..., RemoteHelper]) -> None:
    """At every step the gateway is killed and started again, and is asked again. The sum is exact. No list that differs
    from the first is opened, no report counts twice, and the round does not begin anew."""
    plan = plan_of(server)
    helper = connect(plan)
    first, told = Round(plan, invite(plan), helper.key), invite(plan)
    tickets = [first.ticket(device) for device in DEVICES[:4]]
    helper.begin(told)
    for ticket in tickets:
        helper = connect(plan)
        assert helper.key == first.key, "the key of a run survives"
        helper.begin(told)
        assert helper.admit(ticket) is None
        assert helper.admit(ticket) is None, "asked again"
    assert refused(connect(plan), DEVICES[:2]) == "E-SECAGG-FEW"
    helper = connect(plan)
    helper.begin(told)
    share = helper.open(DEVICES[:4])
    assert first.opened(share) == sum(range(4))
    for _ in range(2):
        assert refused(helper, DEVICES[:3]) == "E-SECAGG-ORDER", "two sums would show one update"
        np.testing.assert_array_equal(helper.open(DEVICES[3::-1]).body, share.body)
        assert helper.admit(tickets[0]) is None
        helper = connect(plan)
        helper.begin(told)
    other = Round(plan, invite(plan, nonce=b"B" * 32), helper.key)
    helper.begin(other.told)
    assert helper.admit(other.ticket(DEVICES[0])) == "E-SECAGG-ORDER", "the round was opened"
    assert refused(helper, DEVICES[:3]) == "E-SECAGG-ORDER"
    later = invite(plan, 1)
    helper.begin(later)
    assert helper.admit(tickets[0]) == "E-SECAGG-ORDER", "a report of another round"


@pytest.mark.slow
def test_a_report_counts_in_one_attempt_at_a_round(server: Identity, connect: Callable[..., RemoteHelper]) -> None:
    plan = plan_of(server)
    helper = connect(plan)
    one = Round(plan, invite(plan), helper.key)
    tickets = [one.ticket(device) for device in DEVICES[:3]]
    helper.begin(one.told)
    assert {helper.admit(ticket) for ticket in tickets} == {None}
    helper = connect(plan)
    helper.begin(invite(plan, nonce=b"B" * 32))
    helper = connect(plan)
    helper.begin(one.told)  # back to the first, of which the gateway has forgotten the tickets
    assert {helper.admit(ticket) for ticket in tickets} == {"E-SECAGG-ORDER"}
    assert refused(helper, DEVICES[:3]) == "E-SECAGG-ORDER"


@pytest.mark.slow
def test_the_server_invents_no_devices(server: Identity, connect: Callable[..., RemoteHelper]) -> None:
    plan = plan_of(server)
    helper = connect(plan)
    told = Round(plan, invite(plan), helper.key)
    helper.begin(told.told)
    assert helper.admit(told.ticket(DEVICES[4])) == "E-SECAGG-KEYS", "not on the operator's list"
    own = sign.pair(bytes(31) + b"1")
    ticket = two_server.load_ticket(told.ticket(DEVICES[0]))
    said = two_server.share_report_digest(told.context, DEVICES[0], ticket.id, ticket.leader, ticket.helper)
    forged = msgspec.structs.replace(ticket, signature=sign.sign(own.secret, said))
    assert helper.admit(two_server.dump_ticket(forged)) == "E-SECAGG-KEYS", "signed by a key of its own"
    invented = roster.dump([own.public, *(IDENTITIES[device].public for device in DEVICES[1:])])
    assert code(lambda: connect(plan, roster=invented)) == "E-FACTS", "not the devices that devices know"


VERIFIED: dict[str, Any] = {
    "round.sampling": "fixed", "round.cohort": 3, "round.overselect": 1.0, "round.minimum": 1.0,
    "trust.malicious_fraction": 0.2, "trust.cohorts": "verified",
}  # fmt: skip
TOP = bytes(range(32))


def drawn_by(plan: Plan, contributors: list[str]) -> tuple[frame.Invite, bytes]:
    """An invitation to the first round, and the beacon of these devices that its cohort is drawn from."""
    anchor, values = beacon.anchor(TOP, plan.rounds), {d: d.encode().ljust(32)[:32] for d in contributors}
    listed = tuple(frame.Committed(device=d, commitment=beacon.commitment(plan.run, d, values[d])) for d in values)
    fixed = beacon.list_digest(plan.run, anchor, listed)
    signed = (sign.sign(IDENTITIES[d].secret, beacon.reveal_digest(fixed, d, v)) for d, v in values.items())
    said = frame.Beacon(
        run=plan.run, anchor=anchor, listed=listed, values=tuple(values.values()), signatures=tuple(signed)
    )
    blob = frame.dump(said)
    draw = frame.Draw(beacon=vector.digest(blob), key=beacon.key(TOP, plan.rounds, 0))
    return msgspec.structs.replace(invite(plan), draw=draw), blob


@pytest.mark.slow
def test_the_server_picks_no_device_where_cohorts_are_verified(
    server: Identity, connect: Callable[..., RemoteHelper]
) -> None:
    """Neither with a ticket from outside the draw, also after a restart of the gateway, nor with a draw of its own."""
    plan = plan_of(server, **VERIFIED)
    told, blob = drawn_by(plan, DEVICES[:2])
    known = Trust(registry, lambda _: b"", roster=tuple(DEVICES))
    cohort = beacon.cohort(plan, known, told.draw, 0, blob)
    inside, outside = (next(d for d in DEVICES[:4] if (d in cohort) is there) for there in (True, False))
    helper = connect(plan)
    honest = Round(plan, told, helper.key)
    helper.begin(told, blob)
    helper = connect(plan)
    assert helper.admit(honest.ticket(inside)) is None
    assert helper.admit(honest.ticket(outside)) == "E-COHORT"
    alone, forged = drawn_by(plan, DEVICES[:1])  # one value, which an accomplice may have chosen
    other_key = msgspec.structs.replace(told.draw, key=beacon.key(TOP, plan.rounds, 1))
    lies = [
        (alone, forged, "E-BEACON"),
        (told, forged, "E-BEACON"),
        (msgspec.structs.replace(told, draw=other_key), blob, "E-BEACON"),
        (msgspec.structs.replace(told, draw=None), blob, "E-INVITE"),
    ]
    for number, (said, raw, refusal) in enumerate(lies):
        said = msgspec.structs.replace(said, nonce=bytes([number]) * 32)
        helper.begin(said, raw)
        assert helper.admit(Round(plan, said, helper.key).ticket(inside)) == refusal
        assert refused(helper, sorted(cohort)) in (refusal, "E-SECAGG-ORDER")
    assert code(helper.begin, msgspec.structs.replace(told, nonce=b"Z" * 32), None) == "E-FRAME"


@pytest.mark.slow
def test_the_gateway_takes_its_parameters_from_its_own_plan(
    server: Identity, connect: Callable[..., RemoteHelper], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(server)
    lower = replace(plan, facts=msgspec.structs.replace(plan.facts, n_min=2))
    assert code(connect, lower) == "E-FACTS"
    assert code(connect, plan_of(server, merge={"kind": "secure_sum"})) == "E-COMBO"
    careful = OwnerFloor(secagg=Floor(n_min=4))
    assert code(lambda: connect(plan, floor=careful)) == "E-FLOOR"
    real = facts.sign
    monkeypatch.setattr(facts, "sign", lambda secret, raw: real(secret, raw + b" "))
    assert code(connect, plan) == "E-FACTS"


def test_the_gateway_serves_its_own_server_alone(
    server: Identity, connect: Callable[..., RemoteHelper], tmp_path: Path
) -> None:
    other = identity.make(tmp_path / "other.key")
    assert code(lambda: connect(plan_of(other), me=other)) == "E-SIGNATURE"


def test_a_recorded_step_is_refused(server: Identity, connect: Callable[..., RemoteHelper]) -> None:
    plan = plan_of(server)
    helper = connect(plan)
    link = helper._link
    headers = link._signed("POST", "/v1/shares/batch", "", b"[]", plan.run, "0")
    answers = [link._http.post("/v1/shares/batch", content=b"[]", headers=headers) for _ in range(2)]
    assert [answer.json()["code"] for answer in answers] == ["E-SECAGG-ORDER", "E-REPLAY"]


@pytest.mark.slow
def test_nobody_seals_to_a_key_that_the_gateway_did_not_sign(
    server: Identity, connect: Callable[..., RemoteHelper]
) -> None:
    plan = plan_of(server)
    helper = connect(plan)
    name, signed = helper._link.home.server, helper.statement
    assert share_keys.checked_share_key(signed, "helper", plan.run, name) == helper.key
    forged = msgspec.to_builtins(share_keys.made_share_key(server, "helper", plan.run, helper.key))
    for wrong, run, by in (
        (forged, plan.run, name), (signed, "0" * 64, name), (signed, plan.run, server.name),
        ({**signed, "key": "00" * 32}, plan.run, name), ({}, plan.run, name), ({**signed, "more": ""}, plan.run, name),
    ):  # fmt: skip
        assert code(share_keys.checked_share_key, wrong, "helper", run, by) == "E-SERVER-KEY"
    assert code(share_keys.checked_share_key, signed, "leader", plan.run, name) == "E-SERVER-KEY"


@pytest.mark.slow
def test_nothing_on_the_gateways_disk_opens_a_batch_again(
    server: Identity, connect: Callable[..., RemoteHelper], folder: Path
) -> None:
    """Boxes sealed to it are deleted with the batch, and the seeds were never written."""
    plan = plan_of(server)
    helper = connect(plan)
    told = Round(plan, invite(plan), helper.key)
    tickets = [told.ticket(device) for device in DEVICES[:3]]
    helper.begin(told.told)
    assert {helper.admit(ticket) for ticket in tickets} == {None}
    sealed = [two_server.load_ticket(ticket).helper for ticket in tickets]
    found = lambda: [box for box in sealed if any(box in p.read_bytes() for p in folder.rglob("*") if p.is_file())]  # noqa: E731
    assert found() == sealed
    helper.open(DEVICES[:3])
    assert found() == []
    with pytest.raises(DecodeError):
        helper.open(DEVICES[:2])


@pytest.mark.slow
def test_a_run_whose_devices_the_gateway_does_not_count_is_refused_at_its_start(
    server: Identity, connect: Callable[..., RemoteHelper], folder: Path
) -> None:
    (folder / "devices.txt").write_text("\n".join(DEVICES[:2]))
    assert code(connect, plan_of(server)) == "E-SECAGG-FEW"


def test_a_list_that_is_no_list_is_an_error(folder: Path) -> None:
    (folder / "devices.txt").write_text(f"{DEVICES[0]}\nfriend\n")
    assert code(Gateway, folder) == "E-IDENTITY"
    assert set(IDENTITIES) == set(DEVICES)
