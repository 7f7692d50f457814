"""Outputs of a server that others see: log, metrics, answers, crash files. No secret is in any of them."""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served import RUN, contribution, count, joined, running, send_invitation

from edgewise.apps.server.metrics import prometheus_metrics
from edgewise.apps.server.start import HttpServer
from edgewise.apps.terminal.sessions import CommandSession
from edgewise.core.errors import EdgewiseError
from edgewise.core.redacted import redacted
from edgewise.drivers import logs
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import browser, home, tokens
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.page_rules import HOME, LOGIN


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "server.log"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("seen")) as made, logs.opened_log(log):
        yield made


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def logged(log: Path, answer: httpx2.Response, event: str = "request") -> dict[str, Any]:
    """The line about a request; it is written when the answer has left."""
    id, give_up = answer.headers["edgewise-request"], time.monotonic() + 10.0
    while time.monotonic() < give_up:
        if found := [line for line in lines(log) if line.get("id") == id and line["event"] == event]:
            assert len(found) == 1
            return found[0]
        time.sleep(0.005)
    raise AssertionError(f"the log has no line of {id}")


def test_a_request_is_one_line_of_the_log(server: HttpServer, log: Path, tmp_path: Path) -> None:
    with joined(server, tmp_path / "home") as device:
        send_invitation(server, device.name)
        raw = contribution(device.name, bytes(1000))
        count(device, raw)
        answer = device._http.post(
            "/v1/outbox", content=raw, headers=device._signed("POST", "/v1/outbox", "", raw, RUN, "0")
        )
        missing = device._http.get("/nothing/here?and=more")
    first, second = logged(log, answer), logged(log, missing)
    assert second["code"] == "E-ROUTE"
    assert {k: first[k] for k in ("event", "route", "method", "role", "status", "code", "received")} == {
        "event": "request", "route": "/v1/outbox", "method": "POST", "role": "device", "status": 200, "code": None,
        "received": len(raw),
    }  # fmt: skip
    assert first["member"] == device.name[:8]
    assert first["sent"] == len(answer.content)
    assert 0.0 < first["seconds"] < 60.0
    assert "nothing" not in json.dumps(second), "what was asked for may hold anything"
    server.service.database.write(lambda c: mailboxes.close(c, RUN))
    assert log.stat().st_mode & 0o077 == 0


def test_metrics_are_for_this_machine_and_name_nobody(server: HttpServer, tmp_path: Path) -> None:
    with joined(server, tmp_path / "home") as device:
        text = device._http.get("/metrics").text
        assert 'edgewise_members{role="device",status="approved"}' in text
        assert 'edgewise_requests_total{method="POST",outcome="200",route="/v1/join"}' in text
        assert 'edgewise_ready{check="disk"} 1.0' in text
        assert "process_resident_memory_bytes" in text
        assert device.name[:8] not in text
        assert device._http.get("/metrics", headers={"x-forwarded-for": "192.0.2.1"}).json()["code"] == "E-ROLE"


def canaries(device: Link, token: str) -> list[str]:
    """Secrets that nobody may see, in the forms that they may take."""
    raw = [tokens.parse(token).secret, device._me.secret, b"canary-0f1e2d3c"]
    return [token, *(form for one in raw for form in (one.hex(), repr(one)[2:-1], one.decode("latin-1")))]


def test_no_secret_reaches_a_log_an_answer_or_a_disk(
    server: HttpServer, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = server.token(Grant(approved=True))
    with Link.join(server.url, token, tmp_path / "home", "canary-0f1e2d3c") as device:
        secret = canaries(device, token)
        send_invitation(server, device.name)
        raw = contribution(device.name, b"canary-0f1e2d3c")
        device.send(RUN, 0, raw)
        told = [
            device._http.post("/v1/join", content=json.dumps({"token": token}), headers={"edgewise-key": "00" * 32}),
            device._http.post("/v1/join", content=json.dumps({"token": token + "x", "label": 7})),
            device._http.get(f"/v1/{token}?{token}", headers={"edgewise-key": device._me.secret.hex()}),
        ]

        def fails(*_: object) -> None:
            raise RuntimeError(f"{token} {device._me.secret!r} {device._me.secret.hex()} {raw!r}")

        with monkeypatch.context() as patched:
            patched.setattr(mailboxes, "next_letter", fails)
            headers = device._signed("GET", "/v1/inbox", "", b"", "-", "-")
            told.append(device._http.get("/v1/inbox", headers=headers))
        assert (told[-1].status_code, told[-1].json()["code"]) == (500, "E-SERVER")
        fault = logged(log, told[-1], "the server failed at a request")
        assert fault["exception"][0]["type"] == "RuntimeError"
        assert any("fails" in place for place in fault["exception"][0]["at"]), "where it failed is told"
        other = device._http.get("/v1/inbox", headers=device._signed("GET", "/v1/inbox", "", b"", "-", "-"))
        assert other.status_code == 200, "the server goes on"
        logging.getLogger("elsewhere").warning("library says %s, %s, %r", token, device._me.secret.hex(), raw)
        thread = threading.Thread(target=fails)
        thread.start()
        thread.join()
        seen = log.read_text() + device._http.get("/metrics").text + repr(device) + repr(device._me)
    answers = "".join(answer.text + str(answer.headers) for answer in told)
    stored = b"".join(p.read_bytes() for p in server.service.folder.rglob("*") if p.is_file() and p.suffix != ".db-wal")
    for one in secret:
        assert one not in seen + answers, one
        if one != "canary-0f1e2d3c":  # a label is stored: operators see it
            assert one.encode("latin-1") not in stored
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def test_no_login_token_and_no_session_reaches_the_log(server: HttpServer, log: Path, tmp_path: Path) -> None:
    with joined(server, tmp_path / "viewer", "viewer") as viewer:
        text, http = viewer.call("POST", "/v1/logins")["text"], viewer._http
        entered = http.post(LOGIN, data={"token": text}, follow_redirects=False)
        secret = entered.headers["set-cookie"].split("=", 1)[1].split(";")[0]
        cookie = {"cookie": f"{browser.COOKIE}={secret}"}
        answers = [http.get(HOME, headers=cookie), http.get(f"{HOME}/{secret}"), http.post(LOGIN, data={"token": text})]
        found = [logged(log, answer) for answer in (entered, *answers)]
    assert [one["code"] for one in found] == [None, None, "E-ROUTE", "E-SESSION"]
    assert (found[1]["role"], found[1]["member"]) == ("viewer", viewer.name[:8])
    told = log.read_text() + prometheus_metrics(server.service).decode()
    assert text not in told
    assert secret not in told
    assert secret not in "".join(answer.text for answer in answers)


def test_a_crash_file_tells_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token, key = tokens.make_token_for_server("a" * 32).text, secrets.token_bytes(32)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["edgewise", "join", token])

    def body() -> None:
        raise RuntimeError(f"{token} {key!r} {key.hex()}")

    assert CommandSession("join").run(body) == 1
    (path,) = tmp_path.glob("crash-*.txt")
    shown = path.read_text() + capsys.readouterr().err
    for one in (token, key.hex(), repr(key)[2:-1]):
        assert one not in shown
    assert "RuntimeError" in shown
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("nonce=" + "0a" * 16, "nonce=0a0a0a0a..."),
        ("key " + "0a" * 32, "key [redacted]"),
        ("b'" + "x" * 20 + "' and b\"it's 12345\"", "b'[redacted]' and b'[redacted]'"),
        ("sig=:" + "A" * 86 + "==:", "sig=:[redacted]:"),
        ("-----BEGIN PRIVATE KEY-----\nMC4\n-----END PRIVATE KEY-----\nend", "[pem]\nend"),
        ("round 7 of run-1 took 0.25 s at /tmp/x/server.db", "round 7 of run-1 took 0.25 s at /tmp/x/server.db"),
    ],
)
def test_what_looks_like_a_secret_is_cut(text: str, left: str) -> None:
    assert redacted(text) == left


def test_an_error_of_edgewise_is_logged_with_its_text(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with logs.opened_log(path):
        try:
            raise EdgewiseError("E-DISK", "no room.", "make some.")
        except EdgewiseError:
            logging.getLogger("edgewise.test").exception("it failed")
    (line,) = lines(path)
    assert line["exception"][0]["says"] == "E-DISK: no room. Fix: make some."


def test_the_folder_of_a_device_holds_its_key_once(server: HttpServer, tmp_path: Path) -> None:
    with joined(server, tmp_path / "home") as device:
        secret = device._me.secret
    others = [p for p in (tmp_path / "home").rglob("*") if p.is_file() and p.name != home.KEY]
    assert others
    assert not any(secret in p.read_bytes() or secret.hex().encode() in p.read_bytes() for p in others)
