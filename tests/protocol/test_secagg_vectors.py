"""The recorded sessions and rejects, from their files alone, as another implementation would read them.

They are written by ``tests/support/secagg_vectors.py``; what a file says is what we do today, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import hpke
import msgspec
import numpy as np
import pytest
import secagg_frames
import secagg_pieces
import secagg_vectors
from invited import invitation
from session import signed
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.errors import CompositionError, DecodeError
from edgewise.crypto import agree, seal, shamir, sign
from edgewise.plan import facts
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.secagg import client, events, messages, secrets, server, two_server
from edgewise.secagg.params import Floor, Params, TrustPolicy

NAMES = (
    "frames.json",
    "groups.json",
    "joining.json",
    "pieces.json",
    "sessions.json",
    "refused.json",
    "two_servers.json",
)
FILES = {name: json.loads((secagg_vectors.HERE / name).read_text()) for name in NAMES}
FRAMES = FILES["frames.json"]
SESSIONS, REFUSED, TWO = FILES["sessions.json"], FILES["refused.json"], FILES["two_servers.json"]
LARGE = [name for name, session in SESSIONS.items() if len(session["devices"]) > 10]
KINDS = ("advertise", "shares", "masked", "consistent", "revealed")


def hexed(text: str) -> bytes:
    return bytes.fromhex(text)


def params_of(session: dict[str, Any]) -> Params:
    p = session["params"]
    policy = TrustPolicy(p["corrupt"], p["dropout"], p["server"])
    return Params(policy, p["n_min"], p["bits"], p["dim"], p["heads"], p["rung"])


def registry_of(session: dict[str, Any]) -> client.Registry:
    known = {d: hexed(v["public"]) for d, v in session["devices"].items()}
    return known.get


def started(session: dict[str, Any], device: str) -> tuple[client.State, bytes]:
    me = session["devices"][device]
    head = np.array([int(v) for v in me["head"]], np.uint64)
    return client.start(
        params_of(session), hexed(session["sid"]), device, hexed(me["identity"]), np.array(me["body"], np.uint32), head,
        hexed(me["entropy"]),
    )  # fmt: skip


def same(line: dict[str, Any], raw: bytes) -> bool:
    return line["hex"] == raw.hex() if "hex" in line else line["sha256"] == hashlib.sha256(raw).hexdigest()


@pytest.mark.slow
def test_the_files_are_what_we_do() -> None:
    """Another version of the protocol has another label. ``python tests/support/secagg_vectors.py`` writes them."""
    for name, contents in secagg_vectors.made().items():
        assert contents == FILES[name], name


@pytest.mark.quick(sample=20)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in SESSIONS])
def test_devices_say_what_was_recorded(name: str) -> None:
    """Every device's messages, but for marked lies, follow from its secrets and the messages that it received."""
    session = SESSIONS[name]
    with secagg_vectors.quick():
        _say(session)


def _say(session: dict[str, Any]) -> None:
    for device in session["devices"]:
        state, raw = started(session, device)
        answers = iter([raw])
        said = [line for line in session["lines"] if line.get("from") == device]
        for line in session["lines"]:
            if device in line.get("to", ()):
                if "hex" not in line:  # A large session has only the messages of d000 in full.
                    break
                state, raw = client.step(params_of(session), state, hexed(line["hex"]), registry_of(session))
                answers = iter([raw])
            elif line.get("from") == device:
                raw = next(answers) if line.get("lie") != "stray" else raw
                if "lie" not in line:
                    assert same(line, raw)
        assert said


@pytest.mark.quick(sample=20)
@pytest.mark.parametrize("name", [name for name in SESSIONS if name not in LARGE])
def test_the_server_says_what_was_recorded(name: str) -> None:
    session = SESSIONS[name]
    state: server.State = server.start(
        server.SecAggSession(params_of(session), hexed(session["sid"]), registry_of(session))
    )
    sent: list[tuple[str, bytes]] = []
    lines: list[dict[str, Any]] = []
    for line in session["lines"]:
        if "from" in line or "close" in line:
            event: events.Event
            event = (
                events.SecAggReceived(line["from"], hexed(line["hex"])) if "from" in line else events.SecAggStepClosed()
            )
            state, effects = server.step_secagg_server(state, event)
            sent += [(e.device, e.raw) for e in effects if isinstance(e, events.SecAggSend)]
            lines += [{"refused": e.device, "code": e.code} for e in effects if isinstance(e, events.SecAggRefused)]
        elif "to" in line:
            assert [sent.pop(0) for _ in line["to"]] == [(d, hexed(line["hex"])) for d in line["to"]]
        else:
            assert lines.pop(0) == line
    assert not sent
    assert not lines
    if "code" in session["end"]:
        assert isinstance(state, server.Aborted)
        assert state.code == session["end"]["code"]
    else:
        assert isinstance(state, server.Released)
        end = {"survivors": list(state.survivors), "body": state.body.tolist(), "head": [str(v) for v in state.head]}
        assert end == session["end"]


class Play:
    """Session that is played from the devices' secrets, also where its messages are recorded as digests."""

    def __init__(self, session: dict[str, Any]) -> None:
        self.session, self.params, self.registry = session, params_of(session), registry_of(session)
        fixed = server.SecAggSession(self.params, hexed(session["sid"]), self.registry)
        self.server: server.State = server.start(fixed)
        devices = {d: started(session, d) for d in session["devices"]}
        self.outbox = {d: raw for d, (_, raw) in devices.items()}
        self.states = {d: state for d, (state, _) in devices.items()}
        self.mail: dict[str, bytes] = {}

    def to(self, line: dict[str, Any]) -> None:
        """Deliver the server's messages, and collect the devices' answers."""
        for d in line["to"]:
            raw = self.mail.pop(d)
            assert same(line, raw)
            self.states[d], self.outbox[d] = client.step(self.params, self.states[d], raw, self.registry)

    def event(self, line: dict[str, Any]) -> None:
        """Take a device's message, or a deadline."""
        event: events.Event = events.SecAggStepClosed()
        if "from" in line:
            raw = self.outbox.pop(line["from"])
            if "lie" in line:  # This device reveals other shares than it has.
                message = messages.load_secagg_message(raw)
                assert isinstance(message, messages.RevealedMessage)
                wrong = [{d: bytes([v[0] ^ 1]) + v[1:] for d, v in t.items()} for t in (message.seeds, message.keys)]
                said = messages.RevealedMessage(seeds=wrong[0], keys=wrong[1], signature=b"")
                assert isinstance(self.server, server.Unmasking)
                raw = messages.dump(signed(line["from"], self.server.signed.masked.shared.roster, said))
            assert same(line, raw)
            event = events.SecAggReceived(line["from"], raw)
        self.server, effects = server.step_secagg_server(self.server, event)
        self.mail |= {e.device: e.raw for e in effects if isinstance(e, events.SecAggSend)}

    def lines(self, step: int = len(KINDS)) -> server.State:
        """Play the server up to all lines of the steps before ``step``."""
        for line in self.session["lines"]:
            if step_of(self.server) >= step:
                break
            if "to" in line:
                self.to(line)
            elif "from" in line or "close" in line:
                self.event(line)
        return self.server


STEPS = (server.Advertising, server.Sharing, server.Masking, server.Signing, server.Unmasking)


def step_of(state: server.State) -> int:
    return next((i for i, kind in enumerate(STEPS) if isinstance(state, kind)), len(STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_a_sparse_session_is_played_from_its_secrets(name: str) -> None:
    """Its messages are recorded as digests. Every one follows from the devices' secrets."""
    with secagg_vectors.quick():
        state, session = Play(SESSIONS[name]).lines(), SESSIONS[name]
    if "code" in session["end"]:
        assert isinstance(state, server.Aborted)
        assert state.code == session["end"]["code"]
    else:
        assert isinstance(state, server.Released)
        assert state.body.tolist() == session["end"]["body"]


def test_there_is_no_graph_of_these() -> None:
    for case in FILES["pieces.json"]["no shapes"]:
        policy = TrustPolicy(case["corrupt"], case["dropout"], case["server"])
        with pytest.raises(CompositionError):
            policy.shape(case["n"])


def recorded(session: dict[str, Any]) -> list[str]:
    """List the messages that the server sent to d000."""
    return [line["hex"] for line in session["lines"] if "d000" in line.get("to", ())]


def _told(case: dict[str, Any]) -> client.State:
    """Make the state of d000 before the message of the case's step."""
    session = SESSIONS[case["session"]]
    state, _ = started(session, "d000")
    for text in case.get("told", recorded(session)[: case["step"] - 1]):
        state, _ = client.step(params_of(session), state, hexed(text), registry_of(session))
    assert not isinstance(state, client.Aborted)
    return state


@pytest.mark.quick(sample=28)
@pytest.mark.parametrize("case", REFUSED["by devices"], ids=lambda c: c["name"])
def test_devices_refuse(case: dict[str, Any]) -> None:
    session = SESSIONS[case["session"]]
    state, answer = client.step(params_of(session), _told(case), hexed(case["hex"]), registry_of(session))
    assert state == client.Aborted(device="d000", code=case["code"])
    assert messages.load_secagg_message(answer) == messages.Abort(code=case["code"])
    for text in recorded(session)[case["step"] - 1 :]:  # The device does not answer the right message either.
        state, answer = client.step(params_of(session), state, hexed(text), registry_of(session))
        assert answer == b""


@pytest.mark.parametrize("case", REFUSED["accepted by devices"], ids=lambda c: c["name"])
def test_devices_accept(case: dict[str, Any]) -> None:
    session = SESSIONS[case["session"]]
    _, answer = client.step(params_of(session), _told(case), hexed(case["hex"]), registry_of(session))
    assert answer.hex() == case["answer"]


@pytest.mark.parametrize("case", REFUSED["by owners"])
def test_owners_refuse(case: dict[str, Any]) -> None:
    asked, p = Floor(**case["floor"]), case["session"]
    params = Params(TrustPolicy(p["corrupt"], 0.1, p["server"]), p["n_min"], 20, 1, 0)
    state, raw = client.advertise(params, bytes(32), "d", bytes(32), bytes(32), asked)
    if case["code"]:
        assert messages.load_secagg_message(raw) == messages.Abort(code=case["code"])
    else:
        assert isinstance(state, client.Advertised)


def before(case: dict[str, Any]) -> server.State:
    """Make the server before the messages of a case."""
    session = SESSIONS[case["session"]]
    if len(session["devices"]) > 10:
        return Play(session).lines(case["step"])
    state: server.State = server.start(
        server.SecAggSession(params_of(session), hexed(session["sid"]), registry_of(session))
    )
    for line in session["lines"]:
        if step_of(state) >= case["step"]:
            break
        if "from" in line:
            state, _ = server.step_secagg_server(state, events.SecAggReceived(line["from"], hexed(line["hex"])))
        elif "close" in line:
            state, _ = server.step_secagg_server(state, events.SecAggStepClosed())
    return state


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED["by servers"], ids=lambda c: c["name"])
def test_servers_refuse(case: dict[str, Any]) -> None:
    state = before(case)
    assert step_of(state) == case["step"]
    for device, text in case["before"]:
        state, effects = server.step_secagg_server(state, events.SecAggReceived(device, hexed(text)))
        assert not effects
    after, effects = server.step_secagg_server(state, events.SecAggReceived(case["from"], hexed(case["hex"])))
    assert effects == ((events.SecAggRefused(case["from"], case["code"]),) if case["code"] else ())
    if not case["code"]:
        assert after is state


def _leader(context: str = "") -> two_server.LeaderState:
    v = TWO["session"]
    params = Params(TrustPolicy(), v["n_min"], v["bits"], v["dim"], v["heads"])
    known = {d: hexed(r["public"]) for d, r in v["reports"].items()}
    return two_server.lead_two_servers(params, hexed(context or v["context"]), hexed(v["leader_secret"]), known.get)


def _helper() -> two_server.HelperState:
    leader, secret = _leader(), hexed(TWO["session"]["helper_secret"])
    return two_server.HelperState(leader.params, leader.context, secret, leader.registry)


def _half(hidden: secrets.Hidden) -> dict[str, Any]:
    return {"body": hidden.body.tolist(), "head": [str(v) for v in hidden.head]}


def test_two_servers_open_the_recorded_sum() -> None:
    """A report follows from its entropy and the two ephemeral keys. Sealing draws fresh ones, so a second ``split``
    gives the same report but for the two sealed keys."""
    v, leader, helper = TWO["session"], _leader(), _helper()
    for device, r in v["reports"].items():
        raw = hexed(r["report"])
        ticket, share = two_server.open_share_report(leader, device, raw)
        assert two_server.dump_ticket(ticket).hex() == r["ticket"]
        assert two_server.load_ticket(hexed(r["ticket"])) == ticket
        assert (
            ticket.id.hex()
            == r["id"]
            == secrets.fresh_secret(hexed(r["entropy"]), leader.context, "report", device)[:16].hex()
        )
        assert _half(share) == r["leader_share"]
        helper = two_server.admit_share_report(helper, ticket)
        assert helper.seeds[device][1].hex() == r["k"]
        box = raw[two_server._HEAD_BYTES :]
        bound = two_server._share_context(leader.context, b"leader", device, ticket.id)
        assert seal.hpke_open(hexed(v["leader_secret"]), box[:80], bound).hex() == r["content_key"]
        other = two_server._share_context(leader.context, b"helper", device, ticket.id)
        for sealed, to, plain, info in (
            (box[:80], "leader", r["content_key"], bound),
            (ticket.helper, "helper", r["k"], other),
        ):
            public = agree.public_half(hexed(v[f"{to}_secret"]))
            assert hpke.seal(hexed(r["ephemeral"][to]), public, hexed(plain), info) == sealed
        again = two_server.split(
            leader.params, leader.context, device, hexed(r["identity"]), agree.public_half(hexed(v["leader_secret"])),
            agree.public_half(hexed(v["helper_secret"])), np.array(r["body"], np.uint32),
            np.array([int(x) for x in r["head"]], np.uint64), hexed(r["entropy"]),
        )  # fmt: skip
        assert again[two_server._HEAD_BYTES + 80 :] == box[80:]
        leader = two_server.add_leader_share(leader, ticket, share)
    assert _half(leader.total) == v["leader"]
    helper, share = two_server.open_helper_batch(helper, list(v["reports"]))
    assert _half(share) == v["helper"]
    leader.total.add(share.body, share.head)
    assert _half(leader.total) == v["sum"]


def _refusals(case: dict[str, Any]) -> Iterator[object]:
    reports, leader, helper = TWO["session"]["reports"], _leader(), _helper()
    for device in case["before"]:
        if device == "open":
            helper, _ = two_server.open_helper_batch(helper, list(reports))
            continue
        ticket, share = two_server.open_share_report(leader, device, hexed(reports[device]["report"]))
        leader, helper = (
            two_server.add_leader_share(leader, ticket, share),
            two_server.admit_share_report(helper, ticket),
        )
    yield
    if case["by"] == "leader":
        yield two_server.open_share_report(leader, case["device"], hexed(case["report"]))
    elif case["by"] == "helper":
        yield two_server.admit_share_report(helper, two_server.load_ticket(hexed(case["ticket"])))
    else:
        yield two_server.open_helper_batch(helper, case["devices"])[1]


@pytest.mark.quick(sample=16)
@pytest.mark.parametrize("case", TWO["refused"], ids=lambda c: f"{c['by']}: {c['name']}")
def test_two_servers_refuse(case: dict[str, Any]) -> None:
    attempt = _refusals(case)
    next(attempt)
    if not case["code"]:
        share = next(attempt)
        assert isinstance(share, secrets.Hidden)
        assert _half(share) == TWO["session"]["helper"]
        return
    with pytest.raises(DecodeError) as caught:
        next(attempt)
    assert caught.value.code == case["code"]


READ = {"device": frame.from_server, "server": frame.from_device}


@pytest.mark.parametrize("case", FRAMES["frames"], ids=lambda c: c["fields"]["type"])
def test_frames_are_read_and_written(case: dict[str, Any]) -> None:
    raw, fields = hexed(case["hex"]), case["fields"]
    message = READ[case["to"]](raw, case["limit"])
    assert case["limit"] == len(raw)  # The report has the largest allowed size.
    assert frame.dump(message) == raw
    for name, value in msgspec.msgpack.decode(raw[4:]).items():
        assert fields[name] == (value.hex() if isinstance(value, bytes) else value)
    if isinstance(message, frame.Invite):
        assert secagg_frames.sid(message).hex() == case["sid"]


@pytest.mark.parametrize("case", FRAMES["refused"], ids=lambda c: f"{c['by']}: {c['name']}")
def test_frames_are_refused(case: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        READ[case["by"]](hexed(case["hex"]), case["limit"])
    assert caught.value.code == case["code"]


def test_an_invitation_alone_gives_its_session() -> None:
    """A device needs the fields of the invitation, and nothing else of the plan, to know the session's id."""
    for row in FRAMES["run"], FRAMES["layout"]:
        assert hashlib.sha256(row["json"].encode()).hexdigest() == row["hex"]
    assert hashlib.sha256(np.array(FRAMES["model"]["values"], "<f4").tobytes()).hexdigest() == FRAMES["model"]["hex"]
    run = FRAMES["run"]
    assert facts.parse(run["json"].encode()).digest() == run["hex"]
    signed = hexed(run["context"]) + run["json"].encode()
    assert sign.sign(hexed(run["secret"]), signed).hex() == run["signature"]
    stages = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
    asked = {"privacy": "hidden", "metrics": "none", "merge": {"kind": "secure_sum"}, "stage": stages}
    plan = compile(make_recipe(asked), secagg_frames.SPEC, 8, BUILT_IN)
    invite = invitation(plan)
    assert plan.session(invite) == secagg_frames.sid(invite)


def test_pieces_can_be_put_together() -> None:
    """Pieces of a file agree with the other pieces that use them."""
    p = FILES["pieces.json"]
    shares = {int(x): hexed(y) for x, y in p["polynomial"]["2 of 3"].items()}
    assert shamir.combine_shares(shares, 2).hex() == p["polynomial"]["secret"]
    assert p["box"]["seed share"] == shares[1].hex()
    box, b = hexed(p["box"]["box"]), p["box"]
    assert seal.open_sealed(hexed(b["key"]), box[:82], hexed(b["bound"])).hex() == b["seed share"] + b["key share"]
    for keys in p["keys"].values():
        public = sign.pair(hexed(keys["identity"])).public
        assert sign.verify(public, hexed(keys["signature"]), hexed(keys["signed"]))
    assert secagg_pieces.RULE.hex() == p["configuration"][0]["rule"]


@pytest.mark.parametrize("case", FILES["pieces.json"]["signatures"], ids=lambda case: case["what"])
def test_a_signature_on_which_libraries_differ(case: dict[str, Any]) -> None:
    """A key that the server takes and devices refuse would end a round with no device to name."""
    public, signature, message = (hexed(case[name]) for name in ("public", "signature", "message"))
    assert sign.verify(public, signature, message) is case["good"]


@pytest.mark.parametrize("kind", messages.Message.__args__, ids=lambda kind: kind.__name__)
def test_every_message_has_one_encoding(kind: Any) -> None:
    """Another order of fields or devices, a longer prefix, a missing or unknown field: E-FRAME, for each message."""
    whole = [line for session in SESSIONS.values() for line in session["lines"] if "hex" in line]
    raws = [hexed(line["hex"]) for line in whole if kind is messages.Abort or line.get("lie") != "stray"]
    seen = max(
        (raw for raw in raws if raw[-1] and isinstance(messages.load_secagg_message(raw), kind)),
        key=lambda raw: len(getattr(messages.load_secagg_message(raw), "failed", ())),
    )
    fields = msgspec.msgpack.decode(seen)
    table = next((f for f, v in fields.items() if f != "type" and isinstance(v, dict | list) and f != "keys"), "")
    if kind is messages.RosterMessage:
        table = "keys"
    changed = [
        dict(reversed(fields.items())),
        {**fields, "more": 1},
        dict(list(fields.items())[:-1]),
        {**fields, "type": kind.__struct_config__.tag + "s"},
    ]
    if table:
        value = fields[table]
        changed.append({**fields, table: value[::-1] if isinstance(value, list) else dict(reversed(value.items()))})
    raws = [msgspec.msgpack.encode(c) for c in changed]
    raws += [seen + b"\0", seen[:-1], b"\xde\x00" + bytes([seen[0] & 15]) + seen[1:]]
    for raw in raws:
        with pytest.raises(DecodeError) as caught:
            messages.load_secagg_message(raw)
        assert caught.value.code == "E-FRAME"
