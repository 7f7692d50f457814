"""A server over TLS on loopback: who is let in, what is refused, and that it goes on serving others."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from served import RUN, code, connected, contribution, count, joined, running, send_invitation
from shown_runs import login
from starlette.routing import Route

from edgewise.apps.server.api import ControlPlane
from edgewise.apps.server.hosting import Hosting
from edgewise.apps.server.start import HttpServer, Tls
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import ROLES, Grant
from edgewise.drivers.http import browser, certificates, identity, signatures, tokens
from edgewise.drivers.http.limits import Buckets, Gatekeeper, ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.page_rules import LOGIN, PAGES
from edgewise.drivers.http.routes import IN_ROUND_S
from edgewise.drivers.http.rules import ANYONE, RULES, Rule
from edgewise.engine.pacing import LEAST_S

QUICK = ServerLimits(header_s=1.0, stall_s=0.4, wait_s=5.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("served"), QUICK) as made:
        yield made


@pytest.fixture(scope="module")
def links(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Link]]:
    """One member of each role, and one that waits for approval."""
    folder = tmp_path_factory.mktemp("members")
    made = {role: joined(server, folder / role, role) for role in ROLES}
    made["pending"] = joined(server, folder / "pending", approved=False)
    yield made
    for link in made.values():
        link.close()


# -- enrolment ---------------------------------------------------------------------------------------------------------


def test_a_frame_goes_each_way(server: HttpServer, links: dict[str, Link]) -> None:
    device = links["device"]
    number = send_invitation(server, device.name)
    mail = device.poll(0, 1.0)
    assert mail is not None
    assert mail.number == number
    raw = contribution(device.name)
    assert device.send(RUN, 0, raw) == device.send(RUN, 0, raw)
    assert code(device.send, RUN, 0, contribution(device.name, b"other")) == "E-CONFLICT"
    assert code(device.send, RUN, 1, contribution(device.name, round=1)) == "E-CLOSED"
    assert code(device.send, RUN, 0, contribution("e" * 32)) == "E-REQUEST", "a frame in another's name"
    assert code(device.send, RUN, 0, b"EWF\x01junk") == "E-FRAME"
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def test_a_device_sends_nothing_to_another_server_than_its_token_names(server: HttpServer, tmp_path: Path) -> None:
    other = tokens.make_token_for_server("f" * 32).text
    before = server.service.meter.visits
    assert code(Link.join, server.url, other, tmp_path / "home") == "E-SERVER-KEY"
    assert not (tmp_path / "home").exists(), "no key was made, and none was sent"
    assert server.service.meter.visits - before <= 1, "one unsigned question and no more"


@pytest.mark.slow
def test_a_device_trusts_no_other_certificate(server: HttpServer, links: dict[str, Link], tmp_path: Path) -> None:
    """Somebody in between with a certificate of an authority of their own."""
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    _, certificate, key = certificates.authority_and_certificate(tmp_path, (), now)
    with HttpServer(tmp_path / "other", tls=Tls(certificate=certificate, key=key)) as other:
        link = Link(links["device"].home and _copied(links["device"], tmp_path / "home", other.url), patience_s=0.5)
        assert code(link.standing) == "E-CONNECT"
        assert not other.service.meter.visits
        link.close()


def _copied(link: Link, folder: Path, url: str) -> Path:
    """The folder of the same identity, at another address."""
    import msgspec

    from edgewise.drivers.http import home

    me = identity.make(folder / home.KEY)
    home.save(folder, msgspec.structs.replace(link.home, url=url, name=me.name))
    return folder


@pytest.mark.slow
def test_plain_http_is_served_on_loopback_only(tmp_path: Path) -> None:
    with pytest.raises(TransportError) as e:
        HttpServer(tmp_path / "a", host="0.0.0.0", tls=Tls(off=True))
    assert e.value.code == "E-LISTEN"
    with HttpServer(tmp_path / "b", tls=Tls(off=True)) as server:
        token = server.token(Grant(approved=True))
        assert code(Link.join, server.url, token, tmp_path / "home") == "E-REQUEST"
        link = Link.join(server.url, token, tmp_path / "home", plain=True)
        assert link.standing()["status"] == "approved"
        link.close()


def test_an_operator_approves_and_revokes(server: HttpServer, links: dict[str, Link], tmp_path: Path) -> None:
    operator, device = links["operator"], joined(server, tmp_path / "new", approved=False)
    assert device.standing()["status"] == "pending"
    device.patience_s = 0.2
    assert code(device.poll, 0, 0.0) == "E-PENDING"
    operator.call("POST", f"/v1/devices/{device.name}/approve")
    assert device.poll(0, 0.0) is None
    operator.call("POST", f"/v1/devices/{device.name}/revoke")
    assert code(device.poll, 0, 0.0) == "E-REVOKED"
    assert code(operator.call, "POST", f"/v1/devices/{links['admin'].name}/revoke") == "E-ROLE"
    device.close()


def test_tokens_are_made_for_lower_roles_only(links: dict[str, Link]) -> None:
    operator, admin = links["operator"], links["admin"]
    make = lambda link, **wanted: link.call("POST", "/v1/tokens", document=wanted)  # noqa: E731
    for role in ("operator", "admin", "viewer"):
        assert code(lambda role=role: make(operator, role=role)) == "E-ROLE"  # type: ignore[misc]
    assert code(lambda: make(operator, role="device", extra=1)) == "E-REQUEST"
    assert code(lambda: make(operator, uses="1")) == "E-REQUEST"
    made = make(admin, role="operator", uses=2)
    assert tokens.parse(made["text"]).id == made["id"]
    assert made["id"] in {token["id"] for token in operator.call("GET", "/v1/tokens")}
    admin.call("POST", f"/v1/tokens/{made['id']}/revoke")
    assert code(operator.call, "POST", "/v1/tokens/0123/revoke") == "E-UNKNOWN-ID"


# -- every route and every role ----------------------------------------------------------------------------------------


def test_every_route_has_a_rule_and_every_rule_a_route(server: HttpServer) -> None:
    found = set()
    for route in ControlPlane(server.service, server.hosting).api.router.routes:
        methods = getattr(route, "methods", None)
        assert isinstance(route, Route) or methods, f"{route}: not a plain route"
        found |= {(method, str(getattr(route, "path", ""))) for method in methods or () if method != "HEAD"}
    assert found == {(rule.method, rule.path) for rule in (*RULES, *PAGES)}


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize("role", [*ROLES, "pending", "stranger"])
def test_each_role_may_call_its_routes_and_no_other(
    server: HttpServer, links: dict[str, Link], role: str, tmp_path: Path
) -> None:
    """Refused by the guard (401, 403), or let through to a route that finds nothing to do."""
    if role == "stranger":
        identity.make(tmp_path / "device.key")
        link = Link(_copied(links["viewer"], tmp_path, server.url))
    else:
        link = links[role]
    for rule in RULES:
        path = rule.path.replace("{upload}", "0" * 32).replace("{digest}", "0" * 64)
        path = path.replace("{member}", "0" * 32).replace("{token}", "0" * 16)
        path = path.replace("{run}", "0" * 64).replace("{verb}", "pause").replace("{round}", "0")
        headers = link._signed(rule.method, path, "", b"", signatures.NONE, signatures.NONE)
        answer = link._http.request(rule.method, path, headers=headers)
        open_to_all = rule.roles in ({"anyone"}, {"local"}, {"joining"})
        refused = answer.status_code in (401, 403)
        if rule.roles == {"joining"}:
            assert answer.json()["code"] == "E-REQUEST", "no joining key"
        else:
            assert refused != (open_to_all or role in rule.roles), f"{rule.method} {rule.path}: {answer.text}"
    if role == "stranger":
        link.close()


@pytest.mark.parametrize("role", [*ROLES, "pending", "stranger"])
def test_each_role_sees_its_pages_and_no_other(server: HttpServer, links: dict[str, Link], role: str) -> None:
    """A session gives nobody more than the role of its member, also where a device would have one."""
    http, secret = links["viewer"]._http, "" if role == "stranger" else login(server, links[role].name)
    form = {browser.FIELD: browser.form_token(secret), "run": "0" * 64}
    for rule in PAGES:
        if rule.path.endswith("/logout"):  # it would end the session of this test
            continue
        path = rule.path.replace("{member}", "0" * 32).replace("{token}", "0" * 16).replace("{run}", "0" * 64)
        path, cookie = path.replace("{verb}", "pause"), {"cookie": f"{browser.COOKIE}={secret}"}
        sent = {"data": form} if rule.method == "POST" else {}
        answer = http.request(rule.method, path, headers=cookie, follow_redirects=False, **sent)
        to_login = answer.status_code == 303 and answer.headers["location"] == LOGIN
        refused = answer.status_code in (401, 403) or to_login
        if rule.path == LOGIN:
            assert answer.status_code == (200 if rule.method == "GET" else 401), "no login token"
        else:
            assert refused != (rule.roles == ANYONE or role in rule.roles), f"{rule.method} {rule.path}: {answer.text}"


@pytest.mark.parametrize("path", ["/v1/inbox/", "//v1/inbox", "/v1/%69nbox", "/V1/inbox", "/v1/blobs/..", "/docs", "/"])
def test_other_spellings_of_a_path_do_not_exist(server: HttpServer, links: dict[str, Link], path: str) -> None:
    answer = links["device"]._http.get(path)
    assert answer.status_code == 404
    assert answer.json()["code"] == "E-ROUTE"


# -- replays, floods and slow callers ----------------------------------------------------------------------------------


def test_check_ins_that_bring_nothing_write_nothing(
    server: HttpServer, links: dict[str, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a device without mail, of another role, without a signature, and with a false one."""
    written, submit = list[object](), server.service.database.submit
    monkeypatch.setattr(server.service.database, "submit", lambda *a, **k: (written.append(a), submit(*a, **k))[1])
    device, query = links["device"], "after=0&wait=0"
    assert device.poll(2**40, 0.0) is None
    assert code(links["viewer"].poll, 0, 0.0) == "E-ROLE"
    false = {**device._signed("GET", "/v1/inbox", query, b"", "-", "-"), "signature": f"sig=:{'A' * 86}==:"}
    for headers in (dict[str, str](), false):
        assert device._http.get(f"/v1/inbox?{query}", headers=headers).json()["code"] == "E-SIGNATURE"
    assert not written
    send_invitation(server, device.name)
    assert written
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def test_a_frame_that_was_not_counted_is_refused(server: HttpServer, links: dict[str, Link]) -> None:
    device = links["device"]
    send_invitation(server, device.name)
    raw = contribution(device.name, b"not counted")
    post = lambda: device._http.post(  # noqa: E731
        "/v1/outbox", content=raw, headers=device._signed("POST", "/v1/outbox", "", raw, RUN, "0")
    )
    assert post().json()["code"] == "E-COUNTER"
    with server.service.database.read() as c:
        assert mailboxes.arrivals(c, RUN, 0, 10) == []
    count(device, raw)
    assert post().status_code == 200
    for claim in ({"number": 1}, {"number": 0, "digest": "00" * 32}, {"number": True, "digest": "00" * 32}, [], None):
        assert code(device.call, "POST", "/v1/counter", None, b"", "-", None, claim) == "E-REQUEST"
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def test_a_recorded_request_is_refused(server: HttpServer, links: dict[str, Link]) -> None:
    device = links["device"]
    send_invitation(server, device.name)
    raw = contribution(device.name)
    count(device, raw)
    headers = device._signed("POST", "/v1/outbox", "", raw, RUN, "0")
    assert device._http.post("/v1/outbox", content=raw, headers=headers).status_code == 200
    for path, body, expected in (
        ("/v1/outbox", raw, "E-REPLAY"), ("/v1/outbox", raw + b"x", "E-SIGNATURE"), ("/v1/uploads", raw, "E-SIGNATURE"),
        ("/v1/outbox?upload=0", raw, "E-SIGNATURE"),
    ):  # fmt: skip
        assert device._http.post(path, content=body, headers=headers).json()["code"] == expected
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def test_a_revocation_ends_a_long_poll_and_an_upload(
    server: HttpServer, links: dict[str, Link], tmp_path: Path
) -> None:
    import threading

    device, admin = joined(server, tmp_path / "lost"), links["admin"]
    answers: list[str] = []
    poll = threading.Thread(target=lambda: answers.append(code(device.poll, 0, 5.0)))
    poll.start()
    send_invitation(server, device.name)
    poll.join()
    headers = device._signed("POST", "/v1/outbox", "", bytes(1000), RUN, "0")
    with connected(server) as raw:
        raw.sendall(_head("POST", "/v1/outbox", {**headers, "content-length": "1000"}) + bytes(500))
        time.sleep(0.1)
        admin.call("POST", f"/v1/devices/{device.name}/revoke")
        raw.sendall(bytes(10))
        assert b"E-REVOKED" in _read(raw)
    assert code(device.poll, 0, 0.0) == "E-REVOKED"
    device.close()


@pytest.mark.slow
def test_a_server_that_ends_hangs_up_its_long_polls(tmp_path: Path) -> None:
    import threading

    answers: list[str] = []
    with running(tmp_path) as server:
        device = joined(server, tmp_path / "device")
        device.patience_s = 0.0
        poll = threading.Thread(target=lambda: answers.append(code(device.poll, 0, 20.0)))
        poll.start()
        while not server.service.waiting:
            time.sleep(0.01)
    poll.join()
    device.close()
    assert answers == [""], "an answer, and no connection that breaks off"


@pytest.mark.slow
def test_a_server_that_cannot_start_its_runs_gives_all_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Hosting, "start", lambda _: [][0])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with pytest.raises(IndexError):
            HttpServer(tmp_path, port=port)
    HttpServer(tmp_path, port=port).close()  # port and lease are free


@pytest.mark.slow
def test_rates_hold_by_address_and_key(tmp_path: Path) -> None:
    limits = ServerLimits(member_rate=0.001, member_burst=3.0, byte_rate=1.0, byte_burst=100.0)
    with running(tmp_path, limits) as server:
        one, other = joined(server, tmp_path / "one"), joined(server, tmp_path / "two")
        one.patience_s = other.patience_s = 0.0
        assert [code(one.standing) for _ in range(4)] == ["", "", "", "E-RATE"]
        send_invitation(server, other.name)
        assert code(other.send, RUN, 0, contribution(other.name, bytes(10_000))) == "E-RATE"
        assert code(other.standing) == "", "the other key has a rate of its own"
        one.close()
        other.close()


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("?", "?", True),
    ],
)
def test_an_ipv6_network_counts_as_one_address(first: str, second: str, shared: bool) -> None:
    gate = Gatekeeper(ServerLimits(address_rate=0.001, address_burst=1.0))
    gate.address(first, 0.0)
    assert code(gate.address, second, 0.0) == ("E-RATE" if shared else "")


def test_a_bucket_fills_again_and_a_table_of_them_is_bounded() -> None:
    buckets = Buckets(2.0, 4.0, keys=3)
    assert [buckets.take("a", 1.0, 0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert buckets.take("a", 1.0, 0.5) == 0.0
    for key in "bcd":
        buckets.take(key, 1.0, 1.0)
    assert len(buckets._level) == 3


def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _read(raw: ssl.SSLSocket) -> bytes:
    """Read until the connection ends, or an answer of ours is there. Raises TimeoutError where neither comes."""
    parts = b""
    try:
        while piece := raw.recv(2**16):
            parts += piece
            if parts.endswith(b"}"):
                break
    except TimeoutError:
        raise
    except OSError:  # it ended without a farewell
        pass
    return parts


@pytest.mark.slow
def test_slow_and_oversized_callers_are_ended_and_others_served(server: HttpServer, links: dict[str, Link]) -> None:
    device = links["device"]
    headers = device._signed("POST", "/v1/outbox", "", bytes(1000), RUN, "0")
    whole = _head("POST", "/v1/outbox", {**headers, "content-length": "1000"})
    too_large = _head("POST", "/v1/outbox", {**headers, "content-length": str(2**23)})
    unannounced = _head("POST", "/v1/outbox", {**headers, "transfer-encoding": "chunked"})
    vectors = {
        b"GET /healthz HTTP/1.1\r\nhost: ": b"",  # headers that never end
        b"": b"",  # nothing at all
        whole + bytes(500): b"E-STALL",
        too_large: b"E-QUOTA",
        unannounced: b"E-REQUEST",
        b"GET /healthz HTTP/1.1\r\n" + b"a: b\r\n" * 10_000: b"400",
        b"\x00" * 100: b"400",
    }
    open_ones = []
    for sent, expected in vectors.items():  # each sends at once: the server waits ``header_s`` for it and no longer
        open_ones.append((connected(server), sent, expected))
        open_ones[-1][0].sendall(sent)
    assert device.standing()["status"] == "approved", "others are served meanwhile"
    for raw, sent, expected in open_ones:
        with raw:
            assert expected in _read(raw), sent[:40]
    give_up = time.monotonic() + 5.0
    while server.service.gate.in_flight and time.monotonic() < give_up:
        time.sleep(0.01)  # the answer leaves before the room is given back
    assert server.service.gate.in_flight == 0


def test_an_error_says_code_cause_and_cure(links: dict[str, Link]) -> None:
    answer = links["viewer"]._http.get("/v1/devices")
    assert answer.status_code == 401
    assert set(answer.json()) == {"code", "what", "fix"}
    assert answer.headers["content-type"] == "application/json"


def test_a_server_is_ready_while_it_can_commit_and_has_room(server: HttpServer, links: dict[str, Link]) -> None:
    http: httpx2.Client = links["device"]._http
    assert http.get("/readyz").json() == {
        "ready": True,
        "checks": dict.fromkeys(("database", "lease", "blobs", "disk"), "ok"),
    }
    server.service.database._fault = "disk full"
    answer = http.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["database"]) == (503, "failed")
    assert http.get("/healthz").text == "ok\n", "who restarts it for that gains nothing"
    server.service.database._fault = ""


def test_rules_match_whole_paths() -> None:
    rule = Rule("GET", "/v1/blobs/{digest}", frozenset())
    assert rule.pattern.fullmatch("/v1/blobs/" + "a" * 64)
    for path in ("/v1/blobs/", "/v1/blobs/a/b", "/v1/blobs/..", "/v1/blobs/a%2fb", "/v1/blobs/" + "a" * 81):
        assert not rule.pattern.fullmatch(path)
    assert json.dumps(sorted(rule.roles)) == "[]"


@pytest.mark.slow
def test_who_cannot_wait_is_told_when_to_come_back(tmp_path: Path) -> None:
    with running(tmp_path, ServerLimits(waiting=0, in_flight_bytes=1000, checkin_rate=0.01)) as server:
        pauses: list[float] = []
        joined(server, tmp_path / "home").close()
        with Link(tmp_path / "home", patience_s=0.0, sleep=pauses.append) as device:
            assert device.poll(0, 30.0) is None
            assert device.poll(0, 30.0) is None
            first_s, second_s = pauses
            assert first_s == pytest.approx(LEAST_S, abs=1.0)
            assert second_s == pytest.approx(LEAST_S + 100.0, abs=20.0), "the queue has a place for the first already"
            number = send_invitation(server, device.name)
            assert device.poll(number, 30.0) is None
            assert 1.0 <= pauses.pop() <= IN_ROUND_S, "in an open round a device comes back soon"
            mail = device.poll(0, 30.0)
            assert mail is not None, "mail that lies there is handed out all the same"
            assert mail.number == number
            assert code(device.send, RUN, 0, contribution(device.name, bytes(2000))) == "E-BUSY"
            assert device.send(RUN, 0, contribution(device.name)) > number


def test_a_key_does_not_fill_the_room_of_all_others() -> None:
    gate = Gatekeeper(ServerLimits(in_flight_bytes=100, holder_bytes=40))
    gate.hold("one", 40)
    with pytest.raises(TransportError, match="E-BUSY"):
        gate.hold("one", 1)
    gate.hold("two", 40)
    gate.release("one", 40)
    gate.hold("one", 40)
    with pytest.raises(TransportError, match="E-BUSY"):
        gate.hold("three", 40)
    assert gate.in_flight == 80
