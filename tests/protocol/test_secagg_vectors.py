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

from edgewise.codecs import kernels
from edgewise.core.errors import DecodeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive
from edgewise.crypto import agree, shamir, sign
from edgewise.secagg import client, graph, messages, secrets, server, two_server
from edgewise.secagg.params import Params, Policy

PATH = Path(__file__).parent / "vectors" / "secagg.json"
CASES: dict[str, tuple[int, dict[str, int], int]] = {  # bits; who leaves when; rung
    "all stay": (20, {}, -1),
    "one leaves before its update": (20, {"d001": 2}, -1),
    "one leaves after its update": (20, {"d002": 3}, -1),
    "a narrow ring": (13, {"d002": 2}, -1),
    "a group of one rung": (20, {"d002": 2}, 3),
}
RULE = msgspec.msgpack.encode(LocalRule(steps=8, lr=0.25, segments=("a",)))
STATES = ("advertised", "sharing", "waiting", "signed")
LEADER, HELPER = (two_server.server_pair(derive(ROOT, who)) for who in ("leader", "helper"))


def transcript(bits: int, leaves: dict[str, int], rung: int) -> dict[str, Any]:
    """A session of four devices; ``leaves``: device -> the message that it does not answer any more."""
    s = Session(4, dim=6, heads=1, bits=bits, rung=rung)
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
        "n_min": s.n_min, "bits": s.bits, "rung": rung, "sid": SID.hex(),
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
    again = msgspec.structs.replace(keys["d000"], signature=b"")
    again = msgspec.structs.replace(again, signature=sign.sign(IDENTITIES["d001"].secret, again.signed(SID, "d001")))
    other = messages.session_id("task", 3, "another model", "config", bytes(32))
    foreign = sign.sign(IDENTITIES["d001"].secret, keys["d001"].signed(other, "d001"))
    alien = {**keys, "d001": msgspec.structs.replace(keys["d001"], signature=foreign)}
    good = messages.dump(messages.Roster(keys=keys))
    names, roster = tuple(keys), messages.roster_digest(SID, keys)

    def proofs(devices: tuple[str, ...], who: tuple[str, ...] = names) -> messages.Proofs:
        said = messages.survivors_digest(roster, devices)
        return messages.Proofs(signatures={d: sign.sign(IDENTITIES[d].secret, said) for d in who})

    made: list[tuple[str, str, messages.Message | bytes, str]] = [
        ("roster without me", "advertised", messages.Roster(keys=less), "E-SECAGG-KEYS"),
        ("a key of another device", "advertised", messages.Roster(keys=moved), "E-SECAGG-KEYS"),
        ("my keys under another name", "advertised", messages.Roster(keys={**keys, "d001": again}), "E-SECAGG-KEYS"),
        ("keys signed for another model", "advertised", messages.Roster(keys=alien), "E-SECAGG-KEYS"),
        ("a stranger's keys", "advertised", messages.Roster(keys={**keys, "zz": keys["d001"]}), "E-SECAGG-KEYS"),
        ("roster of one", "advertised", messages.Roster(keys={"d000": keys["d000"]}), "E-SECAGG-FEW"),
        ("not sorted", "advertised", messages.Roster(keys=dict(reversed(keys.items()))), "E-FRAME"),
        ("the survivors too early", "advertised", messages.Survivors(devices=("d000",)), "E-SECAGG-ORDER"),
        ("a trailing byte", "advertised", good + b"\x00", "E-FRAME"),
        ("a longer length prefix", "advertised", good.replace(b"\xa4type", b"\xd9\x04type", 1), "E-FRAME"),
        ("nothing", "advertised", b"", "E-FRAME"),
        ("no shares", "sharing", messages.Boxes(boxes={}), "E-SECAGG-FEW"),
        ("a stranger's box", "sharing", messages.Boxes(boxes={"zz": bytes(messages.BOX_BYTES)}), "E-SECAGG-KEYS"),
        ("a short box", "sharing", messages.Boxes(boxes={"d001": bytes(9)}), "E-FRAME"),
        ("boxes that do not open", "sharing",
         messages.Boxes(boxes=dict.fromkeys(names[1:], bytes(messages.BOX_BYTES))), "E-SECAGG-FEW"),
        ("the roster again", "sharing", good, "E-SECAGG-ORDER"),
        ("survivors without me", "waiting", messages.Survivors(devices=names[1:]), "E-SECAGG-SURVIVORS"),
        ("too few survivors", "waiting", messages.Survivors(devices=names[:2]), "E-SECAGG-FEW"),
        ("a survivor nobody knows", "waiting", messages.Survivors(devices=(*names, "zz")), "E-SECAGG-SURVIVORS"),
        ("survivors not sorted", "waiting", messages.Survivors(devices=names[::-1]), "E-FRAME"),
        ("proofs before survivors", "waiting", proofs(names), "E-SECAGG-ORDER"),
        ("proofs of another list", "signed", proofs(names[:3]), "E-SECAGG-SURVIVORS"),
        ("too few proofs", "signed", proofs(names, names[:2]), "E-SECAGG-FEW"),
        ("a second survivor list", "signed", messages.Survivors(devices=names[:3]), "E-SECAGG-ORDER"),
    ]  # fmt: skip
    return [
        {"name": n, "state": state, "hex": (m if isinstance(m, bytes) else messages.dump(m)).hex(), "code": code}
        for n, state, m, code in made
    ]


def server_rejects() -> list[dict[str, Any]]:
    """For the server of the first transcript, when all messages of earlier steps are in: a device's message that it
    must refuse, and the code."""
    t = transcript(*CASES["all stay"])
    sent = {(m["step"], m["from"]): messages.load(bytes.fromhex(m["hex"])) for m in t["messages"] if "from" in m}
    keys, shares, masked = (sent[step, "d000"] for step in (0, 1, 2))
    revealed = sent[4, "d000"]
    replace, identity = msgspec.structs.replace, IDENTITIES["d000"].secret

    def signed(sid: bytes, **changed: bytes) -> messages.Advertise:
        mine = replace(keys.keys, **changed)
        return messages.Advertise(keys=replace(mine, signature=sign.sign(identity, mine.signed(sid, "d000"))))

    other = messages.session_id("task", 3, "another model", "config", bytes(32))
    boxes = shares.boxes  # type: ignore[union-attr]
    flipped = bytes([masked.body[0] ^ 1]) + masked.body[1:]  # type: ignore[union-attr]
    roster = messages.roster_digest(SID, {d: sent[0, d].keys for d in t["devices"]})
    short = masked.body[:-1]  # type: ignore[union-attr]
    said = messages.masked_digest(roster, "d000", ["d001", "d002", "d003"], short, masked.head)  # type: ignore[union-attr]
    list_of_three = messages.survivors_digest(roster, ["d000", "d001", "d002"])
    seeds = revealed.seeds  # type: ignore[union-attr]
    made: list[tuple[str, int, str, messages.Message | bytes, str]] = [
        ("keys of a stranger", 0, "zz", keys, "E-SECAGG-KEYS"),
        ("keys that another device signed", 0, "d001", keys, "E-SECAGG-KEYS"),
        ("keys for another model", 0, "d000", signed(other), "E-SECAGG-KEYS"),
        ("one key for two purposes", 0, "d000", signed(SID, mask=keys.keys.seal), "E-SECAGG-KEYS"),
        ("a key that agrees with nobody", 0, "d000", signed(SID, mask=bytes(32)), "E-KEY-AGREE"),
        ("shares before keys", 0, "d000", shares, "E-SECAGG-ORDER"),
        ("cut off", 0, "d000", messages.dump(keys)[:-1], "E-FRAME"),
        ("a box too few", 1, "d000", messages.Shares(boxes={"d001": boxes["d001"]}), "E-SECAGG-ORDER"),
        ("a box for oneself", 1, "d000", messages.Shares(boxes=messages.ordered({**boxes, "d000": boxes["d001"]})),
         "E-SECAGG-ORDER"),
        ("a masked update with a flipped bit", 2, "d000", replace(masked, body=flipped), "E-SECAGG-KEYS"),
        ("another device's masked update", 2, "d001", masked, "E-SECAGG-KEYS"),
        ("a masked update that is too short", 2, "d000",
         replace(masked, body=short, signature=sign.sign(identity, said)), "E-PAYLOAD"),
        ("a signature on another list", 3, "d000", messages.Consistent(signature=sign.sign(identity, list_of_three)),
         "E-SECAGG-SURVIVORS"),
        ("a key share of a survivor", 4, "d000", messages.Revealed(seeds={}, keys=seeds), "E-SECAGG-ORDER"),
        ("a seed share of nobody", 4, "d000", messages.Revealed(seeds={"zz": seeds["d001"]}, keys={}),
         "E-SECAGG-ORDER"),
    ]  # fmt: skip
    return [
        {"name": n, "step": step, "from": d, "hex": (m if isinstance(m, bytes) else messages.dump(m)).hex(), "code": c}
        for n, step, d, m, c in made
    ]


def pieces() -> dict[str, Any]:
    """Every derivation by itself, for an implementation that does not yet speak."""
    one, two = derive(ROOT, "one"), derive(ROOT, "two")
    hidden = {bits: secrets.Hidden(Params(Policy(), 2, bits, 6, 2)) for bits in (8, 16, 17, 20, 32)}
    for h in hidden.values():
        h.mask([(one, 1)], SID)
    body = hidden[20].body
    names = [f"d{i:03d}" for i in range(12)]
    loaded = agree.Secret(one)
    shared = shamir.share(two, [1, 2, 3], 2, one)
    return {
        "digest": {"label": "x", "parts": ["", "616263"], "hex": messages.digest(b"x", b"", b"abc").hex()},
        "session": {"task": "task", "round": 3, "model": "model", "config": "config", "nonce": bytes(32).hex(),
                    "sid": SID.hex()},
        "configuration": {"layout": "ab", "rule": RULE.hex(), "public": one.hex(), "clip": 0.5, "support": "cd",
                          "hex": messages.configuration("ab", RULE, one, 0.5, "cd").hex()},
        "entropy": {"entropy": one.hex(),
                    **{r: secrets.fresh(one, SID, r, "d000").hex() for r in ("seal", "mask", "seed", "shares")}},
        "commitment": {"device": "d000", "seed": one.hex(), "hex": secrets.commitment(SID, "d000", one).hex()},
        "sealing_key": {"secret": one.hex(), "peer": agree.public(two).hex(), "sender": "a", "to": "b",
                        "key": secrets.sealing_keys(loaded, agree.public(two), SID, "a", "b")[0].hex(),
                        "bound": secrets.bound(SID, "a", "b", bytes(64)).hex()},
        "pair_seed": {"secret": one.hex(), "peer": agree.public(two).hex(), "one": "b", "other": "a",
                      "hex": secrets.pair_seed(loaded, agree.public(two), SID, "b", "a").hex()},
        "mask": [{"seed": one.hex(), "bits": bits, "body": h.body.tolist(), "head": [str(v) for v in h.head]}
                 for bits, h in hidden.items()],
        "pack": {"bits": 20, "body": body.tolist(), "hex": bytes(kernels.pack_bits(body, 20)).hex()},
        "shares": {"secret": two.hex(), "threshold": 2, "entropy": one.hex(),
                   "at": {str(x): y.hex() for x, y in shared.items()}},
        "masked": messages.masked_digest(one, "d000", ["d001", "d002"], b"body", b"head").hex(),
        "survivors": messages.survivors_digest(one, ["d000", "d002"]).hex(),
        "circle": {"seed": one.hex(), "k": 4, "devices": names,
                   "neighbours": {d: list(v) for d, v in graph.neighbours(one, names, 4).items()}},
        "shapes": [{"n": n, "corrupt": c, "dropout": d, "server": server_, "k": k, "t": t}
                   for n, c, d, server_ in ((4, 0.1, 0.1, "malicious"), (64, 0.1, 0.1, "malicious"),
                                            (65, 0.05, 0.05, "curious"), (100, 0.1, 0.1, "malicious"),
                                            (1000, 0.05, 0.05, "malicious"), (1000, 0.2, 0.1, "malicious"))
                   for k, t in (Policy(c, d, server_).shape(n),)],
    }  # fmt: skip


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


def report_rejects(sealed: dict[str, Any]) -> list[dict[str, str]]:
    """A report that one of the two servers must refuse (``by``), for a context and from a device, and the code."""
    raw, n = bytes.fromhex(sealed["report"]), two_server._HEAD_BYTES
    other = messages.session_id("task", 3, "another model", "config", bytes(32)).hex()
    params, body, head = Params(Policy(), 2, 20, 6, 1), np.arange(6, dtype=np.uint32), np.array([7], np.uint64)
    mine = IDENTITIES["d000"].secret

    def split(entropy: str, params: Params = params, body: Any = body, helper: bytes = HELPER.public) -> bytes:
        args = (params, SID, "d000", mine, LEADER.public, helper, body, head, derive(ROOT, entropy))
        return bytes(two_server.split(*args))

    longer = split("longer", Params(Policy(), 2, 20, 8, 1), np.arange(8, dtype=np.uint32))
    made = [
        ("of another model", "leader", other, "d000", raw, "E-SECAGG-KEYS"),
        ("of another device", "leader", SID.hex(), "d001", raw, "E-SECAGG-KEYS"),
        ("of a stranger", "leader", SID.hex(), "zz", raw, "E-SECAGG-KEYS"),
        ("a flipped bit in the leader's box", "leader", SID.hex(), "d000", raw[: n + 90] + bytes([raw[n + 90] ^ 1])
         + raw[n + 91 :], "E-SEAL"),
        ("another end of the leader's box", "leader", SID.hex(), "d000", raw[:-1] + bytes([raw[-1] ^ 1]),
         "E-SECAGG-KEYS"),
        ("another id", "leader", SID.hex(), "d000", raw.replace(raw[raw.index(b"\xa2id") + 5 :][:16], bytes(16), 1),
         "E-SECAGG-KEYS"),
        ("cut off in its head", "leader", SID.hex(), "d000", raw[:40], "E-FRAME"),
        ("another type", "leader", SID.hex(), "d000", raw.replace(b"\xa2id", b"\xa2ix", 1), "E-FRAME"),
        ("a share that is too long", "leader", SID.hex(), "d000", longer, "E-PAYLOAD"),
        ("a seed sealed for the leader", "helper", SID.hex(), "d000", split("wrong", helper=LEADER.public), "E-SEAL"),
        ("the same report again", "helper, after the accepted one", SID.hex(), "d000", raw, "E-SECAGG-ORDER"),
        ("a second report of a device", "helper, after the accepted one", SID.hex(), "d000", split("second"),
         "E-SECAGG-ORDER"),
    ]  # fmt: skip
    return [
        {"name": name, "by": by, "context": context, "device": device, "report": report.hex(), "code": code}
        for name, by, context, device, report, code in made
    ]


if os.environ.get("EDGEWISE_REWRITE_GOLDEN"):
    PATH.parent.mkdir(exist_ok=True)
    made = {"accept": {name: transcript(*case) for name, case in CASES.items()}, "reject": rejects()}
    sealed = report()
    rest = {"pieces": pieces(), "two_server": sealed, "two_server_reject": report_rejects(sealed)}
    PATH.write_text(json.dumps({**made, "reject_server": server_rejects(), **rest}, indent=1) + "\n")
VECTORS: dict[str, Any] = json.loads(PATH.read_text())


@pytest.mark.parametrize("name", CASES)
def test_sessions_are_the_recorded_ones(name: str) -> None:
    """Every message that we send is the recorded one, and so is the sum."""
    assert transcript(*CASES[name]) == VECTORS["accept"][name]


def _registry(device: str) -> bytes | None:
    known = VECTORS["accept"]["all stay"]["devices"].get(device)
    return bytes.fromhex(known["public"]) if known else None


def test_the_recorded_rejects_are_ours() -> None:
    assert rejects() == VECTORS["reject"]


def test_every_derivation_is_the_recorded_one() -> None:
    assert pieces() == VECTORS["pieces"]


@pytest.mark.parametrize("case", VECTORS["reject"], ids=lambda c: c["name"])
def test_recorded_rejects_are_refused(case: dict[str, str]) -> None:
    """From the file alone, as another implementation would."""
    t = VECTORS["accept"]["all stay"]
    params, me = Params(Policy(), t["n_min"], t["bits"], 6, 1, t["rung"]), t["devices"]["d000"]
    state: client.State
    state, _ = client.start(
        params, bytes.fromhex(t["sid"]), "d000", bytes.fromhex(me["identity"]), np.array(me["body"], np.uint32),
        np.array([int(v) for v in me["head"]], np.uint64), bytes.fromhex(me["entropy"]),
    )  # fmt: skip
    for number in range(1, STATES.index(case["state"]) + 1):
        told = next(m["hex"] for m in t["messages"] if m.get("to") == "d000" and m["step"] == number)
        state, _ = client.step(params, state, bytes.fromhex(told), _registry)
    assert type(state).__name__.lower() == case["state"]
    state, answer = client.step(params, state, bytes.fromhex(case["hex"]), _registry)
    assert isinstance(state, client.Aborted)
    assert messages.load(answer) == messages.Abort(code=case["code"])


@pytest.mark.parametrize("case", VECTORS["reject_server"], ids=lambda c: c["name"])
def test_recorded_rejects_are_refused_by_the_server(case: dict[str, Any]) -> None:
    t = VECTORS["accept"]["all stay"]
    params = Params(Policy(), t["n_min"], t["bits"], 6, 1, t["rung"])
    state: server.State = server.start(server.Session(params, bytes.fromhex(t["sid"]), _registry))
    for m in (m for m in t["messages"] if "from" in m and m["step"] < case["step"]):
        state, _ = server.step(state, server.Received(m["from"], bytes.fromhex(m["hex"])))
        if m["step"] == 0 and m["from"] == "d003":
            state, _ = server.step(state, server.Close())
    _, effects = server.step(state, server.Received(case["from"], bytes.fromhex(case["hex"])))
    assert server.Refused(case["from"], case["code"]) in effects


def test_the_recorded_rejects_of_servers_are_ours() -> None:
    assert server_rejects() == VECTORS["reject_server"]


@pytest.mark.parametrize("case", VECTORS["two_server_reject"], ids=lambda c: c["name"])
def test_recorded_reports_are_refused(case: dict[str, Any]) -> None:
    v = VECTORS["two_server"]
    params, context = Params(Policy(), 2, v["bits"], len(v["body"]), 1), bytes.fromhex(case["context"])
    leader = two_server.lead(params, context, bytes.fromhex(v["leader_secret"]), _registry)
    helper = two_server.Helper(params, context, bytes.fromhex(v["helper_secret"]), _registry)
    if "after" in case["by"]:
        ticket, _ = two_server.open_report(leader, v["device"], bytes.fromhex(v["report"]))
        helper = two_server.admit(helper, ticket)
    raw = bytes.fromhex(case["report"])
    if case["by"] != "leader":
        ticket, _ = two_server.open_report(leader, case["device"], raw)
    with pytest.raises(DecodeError) as caught:
        two_server.open_report(leader, case["device"], raw) if case["by"] == "leader" else two_server.admit(
            helper, ticket
        )
    assert caught.value.code == case["code"]


def test_the_recorded_report_opens() -> None:
    """Sealing is randomised, so a report is read rather than made again; and not for another context."""
    v = VECTORS["two_server"]
    params, raw = Params(Policy(), 2, v["bits"], len(v["body"]), 1), bytes.fromhex(v["report"])
    context, registry = bytes.fromhex(v["context"]), lambda d: IDENTITIES[d].public
    leader = two_server.lead(params, context, bytes.fromhex(v["leader_secret"]), registry)
    ticket, share = two_server.open_report(leader, v["device"], raw)
    helper = two_server.Helper(params, context, bytes.fromhex(v["helper_secret"]), registry)
    helper = two_server.admit(helper, ticket)
    share.mask([(helper.seeds[v["device"]][1], 1)], context)
    assert share.body.tolist() == v["body"]
    assert [str(x) for x in share.head] == v["head"]
    with pytest.raises(DecodeError):
        two_server.open_report(two_server.lead(params, bytes(32), LEADER.secret, registry), v["device"], raw)
