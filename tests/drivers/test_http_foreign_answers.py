"""Answers that no edgewise server gives: too large, compressed, of another form. Each is E-CONNECT."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer
from served import code, travelling

from edgewise.apps.cli import asking, model_commands, run_commands
from edgewise.core.errors import TransportError
from edgewise.drivers.http import answers, home, identity, naming, partial_blob
from edgewise.drivers.http import link as links
from edgewise.drivers.http.frame_counter import FrameCounter
from edgewise.drivers.http.home import Home
from edgewise.drivers.http.link import Link

BOMB = gzip.compress(bytes(2**24))  # 16 KiB
PIECE = bytes(2**16)


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Link]]:
    """A device whose server answers everything in one way."""
    monkeypatch.setattr(links, "FIRST_PAUSE_S", 0.001)
    me = identity.make(tmp_path / home.KEY)
    home.save(tmp_path, Home("http://127.0.0.1:1", "a" * 32, "", me.name, False))
    made: list[Link] = []

    def answering(answer: Callable[[], httpx2.Response], **how: object) -> Link:
        link = Link(tmp_path, 0.01, **how)  # type: ignore[arg-type]
        link._http = httpx2.Client(base_url=link.home.url, transport=httpx2.MockTransport(lambda request: answer()))
        made.append(link)
        return link

    yield answering
    for link in made:
        link.close()


def calls(link: Link, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "standing": link.standing,
        "poll": lambda: link.poll(0, 0.0),
        "send": lambda: link.send("r", 0, b"x"),
        "upload": lambda: link.send("r", 0, bytes(links.INLINE_BYTES + 1)),
    }


@pytest.mark.parametrize(
    ("answer"),
    [
        {"content": b"<html>hotel</html>"},
        {"json": []},
        {"json": {"status": 1, "number": True, "upload": "u", "chunk": 1, "received": 0}},
        {"json": {"upload": "u", "chunk": 2**20, "received": -1}},
        {"status_code": 302, "headers": {"location": "http://127.0.0.1:1/"}},
        {"stream": httpx2.ByteStream(BOMB), "headers": {"content-encoding": "gzip"}},
        {"content": b"[" * 10_000},
        {"status_code": 403, "content": b"no"},
    ],
)
def test_what_is_no_answer_of_a_server_is_an_error(
    answering: Callable[..., Link], answer: dict[str, Any], tmp_path: Path
) -> None:
    made = httpx2.Response(**{"status_code": 200, **answer})
    link = answering(lambda: made if "stream" in answer else travelling(made))
    assert {name: code(call) for name, call in calls(link, tmp_path).items()} == dict.fromkeys(
        ("standing", "poll", "send", "upload"), "E-CONNECT"
    )


def test_an_answer_without_end_is_read_up_to_a_limit(answering: Callable[..., Link], tmp_path: Path) -> None:
    pieces = []

    def endless() -> Iterator[bytes]:
        while len(pieces) < 10_000:
            pieces.append(1)
            yield PIECE

    link = answering(lambda: httpx2.Response(200, content=endless()), answer_bytes=2**20)
    for name, limit in (("standing", 2**20), ("send", 2**20), ("poll", links.FRAME_BYTES)):
        pieces.clear()
        link.patience_s = 0.0
        assert code(calls(link, tmp_path)[name]) == "E-CONNECT"
        assert len(pieces) <= limit // len(PIECE) + 2, name
    pieces.clear()
    assert code(link.download, "a" * 64, tmp_path / "blobs", 2**20) == "E-BLOB"
    assert len(pieces) <= 2**20 // len(PIECE) + 2
    assert list((tmp_path / "blobs").iterdir()) == []


def test_a_stranger_in_the_servers_place_fills_no_memory() -> None:
    """Before a token's server has proved itself anybody may answer, whatever the certificate."""
    sent = []

    class Stranger(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(2**40))
            self.end_headers()
            try:
                while len(sent) < 4000:
                    self.wfile.write(PIECE)
                    sent.append(1)
            except OSError:
                pass

    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.handle_request)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    assert code(lambda: naming.named(url, "a" * 32, 5.0)) == "E-SERVER-KEY"
    thread.join()
    server.server_close()
    assert len(sent) < 1000, "what the network had taken when the device hung up"


def test_a_disk_without_room_is_an_error_and_stays_free(
    answering: Callable[..., Link], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = answering(lambda: travelling(httpx2.Response(200, content=b"blob")))
    (tmp_path / "file").write_bytes(b"")
    assert code(link.download, "a" * 64, tmp_path / "file", 100) == "E-DISK", "no folder can be made there"
    monkeypatch.setattr(partial_blob, "RESERVE_BYTES", 2**60)
    assert code(link.download, "a" * 64, tmp_path / "blobs", 100) == "E-DISK"
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_leaves_again_is_counted(answering: Callable[..., Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every byte of a body that is sent once more, however the server brings it about."""
    monkeypatch.setattr(links, "INLINE_BYTES", 100)
    monkeypatch.setattr(FrameCounter, "count", lambda self, digest: None)  # asks the server once before a frame leaves
    said, again = [503, 503, 200], list[int]()
    busy = {"code": "E-BUSY", "what": "w.", "fix": "f."}

    def inline() -> httpx2.Response:
        status = said.pop(0)
        return travelling(httpx2.Response(status, json={"number": 1} if status == 200 else busy))

    link = answering(inline, sends=again.append, sleep=lambda seconds: None)
    link.patience_s = 100.0
    assert link.send("r", 0, bytes(70)) == 1
    assert sum(again) == 3 * 70

    again.clear()
    where = iter([0, 4096, 0, 4096, 5000])  # the server says that it has lost a chunk

    def chunked() -> httpx2.Response:
        received = next(where, None)
        found = {"number": 2} if received is None else {"upload": "u", "chunk": 4096, "received": received}
        return travelling(httpx2.Response(200, json=found))

    link = answering(chunked, sends=again.append)
    assert link.send("r", 0, bytes(5000)) == 2
    assert sum(again) == 2 * 5000
    assert answers.ANSWER_BYTES >= 2 * 2**20, "facts of a run, escaped"


@pytest.mark.parametrize(
    ("last", "asked"),
    [(httpx2.ReadError("cut"), 2), (httpx2.ReadTimeout("late"), 2), (502, 2), (b"<html>", 2), (503, 3)],
)
def test_what_must_not_be_done_twice_is_asked_once(answering: Callable[..., Link], last: object, asked: int) -> None:
    """Cases in which the server may have done it. It has not where it was never reached, and where it says so."""
    tried: list[int] = []

    def answer() -> httpx2.Response:
        tried.append(1)
        if len(tried) == 1:
            raise httpx2.ConnectError("refused")
        if len(tried) == 3:
            return travelling(httpx2.Response(200, json={}))
        if isinstance(last, Exception):
            raise last
        if last == 503:
            return travelling(httpx2.Response(503, json={"code": "E-BUSY", "what": "w.", "fix": "f."}))
        return travelling(httpx2.Response(200 if isinstance(last, bytes) else 502, content=b"<html>"))

    link = answering(answer, sleep=lambda seconds: None)
    link.patience_s = 100.0
    assert code(lambda: link.call("POST", "/v1/models/rollback", once=True)) == ("" if last == 503 else "E-CONNECT")
    assert len(tried) == asked


@pytest.mark.parametrize("command", ["rollback", "promote", "verify"])
def test_commands_that_verify_wait_long_and_change_once(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[dict[str, Any]] = []

    class Recorder:
        def call(self, method: str, path: str, *rest: object, **how: Any) -> Any:
            if path == "/v1/runs":
                return [{"run": "a" * 64}]
            said.append({"method": method, **how})
            raise TransportError("E-CONNECT", "enough.")

    monkeypatch.setattr(asking, "asked_server", lambda home, ask: ask(Recorder()))
    monkeypatch.setattr(run_commands, "asked_server", lambda home, ask: ask(Recorder()))
    calls = {
        "rollback": lambda: model_commands.rollback(),
        "promote": lambda: model_commands.promote("a" * 64),
        "verify": lambda: run_commands.verify("a" * 64),
    }
    with pytest.raises(typer.Exit):
        calls[command]()
    (one,) = said
    assert one["answer_s"] == links.SLOW_S
    assert one.get("once", False) == (one["method"] == "POST")
