"""Whole transcripts of secure aggregation, byte for byte: what another implementation must send, accept and refuse.

Rewrite with ``EDGEWISE_REWRITE_GOLDEN=1 pytest tests/protocol/test_secagg_vectors.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from session import IDENTITIES, ROOT, SID, Session

from edgewise.core.errors import DecodeError
from edgewise.core.keys import derive
from edgewise.secagg import client, messages, server, two_server
from edgewise.secagg.params import Params, Policy

PATH = Path(__file__).parent / "vectors" / "secagg.json"
CASES = {"all stay": {}, "one leaves before its update": {"d001": 2}, "one leaves after its update": {"d002": 3}}
LEADER, HELPER = (two_server.server_pair(derive(ROOT, who)) for who in ("leader", "helper"))


def transcript(leaves: dict[str, int]) -> dict[str, Any]:
    """A session of four devices; ``leaves``: device -> the message that it does not answer any more."""
    s = Session(4, dim=6, heads=1, bits=20)
    lines, number = [], 0

    def to_server(device: str, raw: bytes) -> list[tuple[str, bytes]]:
        lines.append({"step": number, "from": device, "hex": raw.hex()})
        return s.give(device, raw)

    for device, raw in s.advertise():
        to_server(device, raw)
    mail = s.close()
    while not s.over:
        number += 1
        lines.extend({"step": number, "to": d, "hex": raw.hex()} for d, raw in mail)
        answers = [(d, s.answer(d, raw)) for d, raw in mail if leaves.get(d, 9) > number]
        mail = [letter for d, raw in answers for letter in to_server(d, raw)]
        if not mail and not s.over:
            mail = s.close()
    assert isinstance(s.server, server.Released)
    return {
        "n_min": s.n_min, "bits": s.bits, "sid": SID.hex(),
        "devices": {
            d: {
                "identity": IDENTITIES[d].secret.hex(), "public": IDENTITIES[d].public.hex(),
                "entropy": derive(ROOT, "entropy", d).hex(), "body": s.xs[d].tolist(),
                "head": [str(v) for v in s.hs[d]],
            }
            for d in s.devices
        },
        "messages": lines,
        "sum": {"survivors": list(s.server.survivors), "body": s.server.body.tolist(),
                "head": [str(v) for v in s.server.head]},
    }  # fmt: skip


def rejects() -> list[dict[str, str]]:
    """For d000 of the first transcript: a message that it must answer with an abort, and the code."""
    s = Session(4, dim=6, heads=1, bits=20)
    keys = messages.ordered({d: messages.load(raw).keys for d, raw in s.advertise()})  # type: ignore[union-attr]
    less = {d: k for d, k in keys.items() if d != "d000"}
    moved = {**keys, "d001": msgspec.structs.replace(keys["d001"], mask=keys["d002"].mask)}
    good = messages.dump(messages.Roster(keys=keys))
    out = [
        ("roster without me", "advertised", messages.dump(messages.Roster(keys=less)), "E-SECAGG-KEYS"),
        ("a key of another device", "advertised", messages.dump(messages.Roster(keys=moved)), "E-SECAGG-KEYS"),
        ("roster of one", "advertised", messages.dump(messages.Roster(keys={"d000": keys["d000"]})), "E-SECAGG-FEW"),
        ("not sorted", "advertised", messages.dump(messages.Roster(keys=dict(reversed(keys.items())))), "E-SECAGG-FEW"),
        (
            "the survivors too early",
            "advertised",
            messages.dump(messages.Survivors(devices=("d000",))),
            "E-SECAGG-ORDER",
        ),
        ("a trailing byte", "advertised", good + b"\x00", "E-FRAME"),
        ("nothing", "advertised", b"", "E-FRAME"),
        ("no shares", "sharing", messages.dump(messages.Boxes(boxes={})), "E-SECAGG-FEW"),
        ("a stranger's box", "sharing", messages.dump(messages.Boxes(boxes={"zz": b""})), "E-SECAGG-KEYS"),
        ("the roster again", "sharing", good, "E-SECAGG-ORDER"),
    ]
    return [{"name": n, "state": state, "hex": raw.hex(), "code": code} for n, state, raw, code in out]


def report() -> dict[str, Any]:
    """A report for two servers."""
    params = Params(Policy(), 2, 20, 6, 1)
    body, head = np.arange(6, dtype=np.uint32), np.array([7], np.uint64)
    return {
        "bits": params.bits, "body": body.tolist(), "head": ["7"], "context": SID.hex(), "device": "d000",
        "leader_secret": LEADER.secret.hex(), "helper_secret": HELPER.secret.hex(),
        "entropy": derive(ROOT, "report").hex(),
        "report": two_server.split(params, SID, "d000", IDENTITIES["d000"].secret, LEADER.public, HELPER.public, body,
                                   head, derive(ROOT, "report")).hex(),
    }  # fmt: skip


if os.environ.get("EDGEWISE_REWRITE_GOLDEN"):
    PATH.parent.mkdir(exist_ok=True)
    made = {"accept": {name: transcript(leaves) for name, leaves in CASES.items()}, "reject": rejects()}
    PATH.write_text(json.dumps({**made, "two_server": report()}, indent=1) + "\n")
VECTORS: dict[str, Any] = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", CASES)
def test_sessions_are_the_recorded_ones(name: str) -> None:
    """Every message that we send is the recorded one, and so is the sum."""
    assert transcript(CASES[name]) == VECTORS["accept"][name]


def _registry(device: str) -> bytes | None:
    known = VECTORS["accept"]["all stay"]["devices"].get(device)
    return bytes.fromhex(known["public"]) if known else None


@pytest.mark.parametrize("case", VECTORS["reject"], ids=lambda c: c["name"])
def test_recorded_rejects_are_refused(case: dict[str, str]) -> None:
    """From the file alone, as another implementation would."""
    t = VECTORS["accept"]["all stay"]
    params, me = Params(Policy(), t["n_min"], t["bits"], 6, 1), t["devices"]["d000"]
    state: client.State
    state, _ = client.start(
        params, bytes.fromhex(t["sid"]), "d000", bytes.fromhex(me["identity"]), np.array(me["body"], np.uint32),
        np.array([int(v) for v in me["head"]], np.uint64), bytes.fromhex(me["entropy"]),
    )  # fmt: skip
    if case["state"] == "sharing":
        roster = next(m["hex"] for m in t["messages"] if m.get("to") == "d000" and m["step"] == 1)
        state, _ = client.step(params, state, bytes.fromhex(roster), _registry)
    state, answer = client.step(params, state, bytes.fromhex(case["hex"]), _registry)
    assert isinstance(state, client.Aborted)
    assert messages.load(answer) == messages.Abort(code=case["code"])


def test_the_recorded_report_opens() -> None:
    """Sealing is randomised, so a report is read rather than made again; and not for another context."""
    v = VECTORS["two_server"]
    params, raw = Params(Policy(), 2, v["bits"], len(v["body"]), 1), bytes.fromhex(v["report"])
    context, registry = bytes.fromhex(v["context"]), lambda d: IDENTITIES[d].public
    leader = two_server.lead(params, context, bytes.fromhex(v["leader_secret"]), registry)
    ticket, share = two_server.open_report(leader, v["device"], raw)
    helper = two_server.Helper(params, context, bytes.fromhex(v["helper_secret"]), registry)
    helper = two_server.admit(helper, ticket)
    share.mask(helper.seeds[v["device"]][1], context, 1)
    assert share.body.tolist() == v["body"]
    assert [str(x) for x in share.head] == v["head"]
    with pytest.raises(DecodeError):
        two_server.open_report(two_server.lead(params, bytes(32), LEADER.secret, registry), v["device"], raw)
