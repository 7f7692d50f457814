"""A device's connection through a network that fails: retries do no harm, transfers go on where they broke off."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from proxy import PIECE, Way, proxied
from served import RUN, code, contribution, count, joined, running, send_invitation, travelling

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes, uploads
from edgewise.drivers.fleet.tables import MAIL, PUBLICATIONS
from edgewise.drivers.http import link as links
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link

CHUNK = 2**16
SLACK = 2**14  # headers and TLS records of a transfer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("served"), ServerLimits(stall_s=2.0)) as made:
        yield made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(links, "INLINE_BYTES", CHUNK // 2)
    monkeypatch.setattr(links, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def folder(server: HttpServer, tmp_path: Path) -> Iterator[Path]:
    """Of an enrolled device."""
    joined(server, tmp_path / "home").close()
    yield tmp_path / "home"
    server.service.database.write(lambda c: mailboxes.close(c, RUN))


def through(folder: Path, url: str, patience_s: float = 10.0) -> Link:
    """The device's connection by way of a proxy."""
    import msgspec

    from edgewise.drivers.http import home

    home.save(folder, msgspec.structs.replace(home.load(folder), url=url))
    return Link(folder, patience_s)


def taken(server: HttpServer, device: str) -> list[bytes]:
    """The frames of a device that count, opened."""
    with server.service.database.read() as c:
        key = mailboxes.round_key(c, RUN, 0)
        found = [letter for letter in mailboxes.arrivals(c, RUN, 0, 100) if letter.device == device]
    return [mailboxes.opened(letter, key, server.service.chunks, CHUNK) for letter in found]


@pytest.mark.slow
def test_the_link_needs_neither_torch_nor_the_packages_of_the_server() -> None:
    report = "import sys, edgewise.drivers.http.link\nprint(*[m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["torch", "transformers", "starlette", "fastapi", "uvicorn", "alembic", "sqlalchemy", "pydantic"]
    done = subprocess.run([sys.executable, "-c", report, *heavy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize("cut", [0, 100, 1500, 2200, 3000])
def test_a_frame_counts_once_however_the_connection_breaks(server: HttpServer, folder: Path, cut: int) -> None:
    """The first connections break after so many bytes to the server, or so many from it: also after the commit."""
    ways = [Way(cut_up=cut), Way(cut_down=cut), Way(refuse=True)]
    way = lambda n: ways[n] if n < len(ways) else Way()  # noqa: E731
    with proxied(server.port, way) as proxy, through(folder, proxy.url) as device:
        send_invitation(server, device.name)
        raw = contribution(device.name, bytes(100))
        number = device.send(RUN, 0, raw)
        proxy.cut_all()
        assert device.send(RUN, 0, raw) == number
        assert taken(server, device.name) == [raw]


@pytest.mark.slow
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_upload_that_is_killed_sends_one_chunk_again_at_most(server: HttpServer, folder: Path, part: float) -> None:
    size = 10 * CHUNK
    with proxied(server.port, lambda n: Way(cut_up=int(part * size)) if n == 0 else Way()) as proxy:
        with through(folder, proxy.url, patience_s=0.0) as device:
            send_invitation(server, device.name)
            raw = contribution(device.name, bytes(size))
            assert code(device.send, RUN, 0, raw) == "E-CONNECT"
        with through(folder, proxy.url) as device:  # a new process: it remembers nothing
            device.send(RUN, 0, raw)
        assert proxy.connections == 2
        assert proxy.up < len(raw) + CHUNK + 3 * SLACK
        assert taken(server, device.name) == [raw]


@pytest.mark.slow
def test_a_chunk_whose_answer_was_lost_is_not_sent_again_for_ever(server: HttpServer, folder: Path) -> None:
    with through(folder, server.url) as device:
        send_invitation(server, device.name)
        raw = contribution(device.name, bytes(3 * CHUNK))
        real, lost = device.call, []

        def forgetful(method: str, path: str, *args: object, **kw: object) -> object:
            answer = real(method, path, *args, **kw)  # type: ignore[arg-type]
            if method == "PUT" and not lost:
                lost.append(1)
                return real(method, path, *args, **kw)  # type: ignore[arg-type]
            return answer

        device.call = forgetful  # type: ignore[method-assign]
        device.send(RUN, 0, raw)
        assert lost
        assert taken(server, device.name) == [raw]


@pytest.mark.slow
def test_an_upload_of_other_bytes_than_announced_is_refused_and_begins_anew(server: HttpServer, folder: Path) -> None:
    import hashlib

    with through(folder, server.url) as device:
        send_invitation(server, device.name)
        raw = contribution(device.name, bytes(2 * CHUNK))
        document = {"digest": hashlib.sha256(raw).hexdigest(), "size": len(raw)}
        begun = device.call("POST", "/v1/uploads", document=document, run=RUN, round=0)
        for at in range(0, len(raw), CHUNK):
            piece = b"\xff" * len(raw[at : at + CHUNK])
            device.call("PUT", f"/v1/uploads/{begun['upload']}", {"offset": at}, body=piece, run=RUN, round=0)
        again = {"upload": begun["upload"]}
        assert code(lambda: device.call("POST", "/v1/outbox", again, run=RUN, round=0)) == "E-BLOB"
        device.send(RUN, 0, raw)
        assert taken(server, device.name) == [raw]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_download_goes_on_where_it_broke_off(server: HttpServer, folder: Path, part: float, tmp_path: Path) -> None:
    import secrets

    blob = secrets.token_bytes(2**20)
    digest = server.service.blobs.put(blob)
    server.service.database.write(lambda c: mailboxes.publish(c, RUN, {digest: len(blob)}))
    way = lambda n: Way(cut_down=int(part * len(blob))) if n == 0 else Way()  # noqa: E731
    with proxied(server.port, way) as proxy, through(folder, proxy.url) as device:
        server.service.database.write(lambda c: mailboxes.admit(c, RUN, [device.name]))
        path = device.download(digest, tmp_path / "blobs", 2**20)
        assert path.read_bytes() == blob
        assert proxy.connections == 2
        assert proxy.down < 1.05 * len(blob) + 2 * PIECE + SLACK
        assert device.download(digest, tmp_path / "blobs", 2**20) == path
        assert code(device.download, "0" * 64, tmp_path / "blobs", 2**20) == "E-BLOB"
        path.write_bytes(blob[:-1] + b"?")
        assert device.download(digest, tmp_path / "blobs", 2**20).read_bytes() == blob, "what rotted is fetched anew"
        path.unlink()
        assert code(device.download, digest, tmp_path / "blobs", 2**20 - 1) == "E-BLOB", "a disk is not filled"
        assert sum(left.stat().st_size for left in (tmp_path / "blobs").iterdir()) == 0
    server.service.database.write(lambda c: c.execute(sa.delete(PUBLICATIONS)))


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "", "a" * 63, "A" * 64, "a" * 64 + "/x", "a" * 64 + "\n"])
def test_a_name_that_is_no_digest_is_no_path(server: HttpServer, folder: Path, tmp_path: Path, name: str) -> None:
    """Whoever runs the server may write anything in an invitation. It names no file of a device."""
    with through(folder, server.url) as device:
        before = device.requests
        assert code(device.download, name, tmp_path / "blobs", 2**20) == "E-BLOB"
        assert device.requests == before
    assert not (tmp_path / "blobs").exists()


@pytest.mark.slow
def test_a_frame_overtakes_another_ones_slow_connection(server: HttpServer, folder: Path) -> None:
    """The same frame twice at the same time, on connections of which the second is faster."""
    with proxied(server.port, lambda n: Way(delay_s=0.3) if n == 0 else Way()) as proxy:
        one, other = through(folder, proxy.url), through(folder, proxy.url)
        send_invitation(server, one.name)
        raw, numbers = contribution(one.name), []
        with through(folder, server.url) as first:
            count(first, raw)
        slow = threading.Thread(target=lambda: numbers.append(one.send(RUN, 0, raw)))
        slow.start()
        time.sleep(0.05)
        numbers.append(other.send(RUN, 0, raw))
        slow.join()
        assert len(set(numbers)) == 1
        assert taken(server, one.name) == [raw]
        one.close()
        other.close()


@pytest.mark.slow
def test_the_link_measures_its_speed(server: HttpServer, folder: Path) -> None:
    rate = 2.0**20
    with proxied(server.port, lambda _: Way(rate=rate)) as proxy, through(folder, proxy.url) as device:
        send_invitation(server, device.name)
        device.send(RUN, 0, contribution(device.name, bytes(4 * CHUNK)))
        assert len(device.speed.up) >= 4
        assert max(device.speed.up) < 2 * 8e-6 * rate


def test_pauses_grow_are_of_random_length_and_end_with_patience(folder: Path) -> None:
    pauses: list[float] = []
    with proxied(1, lambda _: Way(refuse=True)) as proxy:
        device = through(folder, proxy.url)
        device._sleep, device.patience_s = pauses.append, 5.0
        clock = iter(range(10_000))
        monotonic, time.monotonic = time.monotonic, lambda: next(clock) * 0.25  # type: ignore[assignment]
        try:
            assert code(device.standing) == "E-CONNECT"
        finally:
            time.monotonic = monotonic
        device.close()
    assert len(pauses) >= 3
    assert all(pause <= links.FIRST_PAUSE_S * 2**n for n, pause in enumerate(pauses))
    assert len(set(pauses)) > 1


def test_mail_that_comes_while_a_device_waits_arrives_at_once(server: HttpServer, folder: Path) -> None:
    with through(folder, server.url) as device:
        found = []
        waiting = threading.Thread(target=lambda: found.append(device.poll(0, 30.0)))
        waiting.start()
        while not server.service.waiting:
            time.sleep(0.005)
        number = send_invitation(server, device.name)
        waiting.join(15.0)
        assert [mail.number for mail in found if mail] == [number], "not before the poll was over"
        with server.service.database.read() as c:
            assert c.execute(sa.select(sa.func.count()).select_from(MAIL)).scalar() == 1


@pytest.mark.slow
def test_nothing_leaves_while_the_link_is_closed_and_what_was_on_its_way_begins_again(
    server: HttpServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed within a body: no more than what was in it before passes, and all of it once the link is open again."""
    monkeypatch.setattr(links, "INLINE_BYTES", 2**22)
    asked, closed_at, pauses = [0], 8, list[int]()
    with proxied(server.port) as proxy, through(folder, proxy.url) as device:
        send_invitation(server, device.name)

        def is_open() -> bool:
            asked[0] += 1
            return not closed_at <= asked[0] < closed_at + 4

        device._open, device._sleep = is_open, lambda _: pauses.append(proxy.up)
        raw = contribution(device.name, bytes(2**21))
        device.send(RUN, 0, raw)
        assert len(pauses) == 3, "asked again and again until it was open"
        assert max(pauses) < 8 * links.PIECE_BYTES + SLACK
        assert taken(server, device.name) == [raw]


def test_who_asks_whether_the_link_is_open_may_end_the_call(folder: Path, server: HttpServer) -> None:
    def leaves() -> bool:
        raise KeyError("the owner leaves")

    with through(folder, server.url) as device:
        device._open = leaves
        with pytest.raises(KeyError):
            device.standing()


@pytest.mark.parametrize(
    ("after", "least"), [("7", 7.0), ("Tue, 01 Dec 2026 12:00:30 GMT", 30.0), ("soon", 0.0), ("999999", 3600.0)]
)
def test_a_server_says_when_to_come_back(folder: Path, server: HttpServer, after: str, least: float) -> None:
    """In seconds or as a date; the pause of random length comes on top, so that not all come back at once."""
    import httpx2

    answers, pauses = [429, 503, 200], list[float]()

    def answer(request: httpx2.Request) -> httpx2.Response:
        status = answers.pop(0)
        said = {"status": "approved", "code": "E-BUSY" if status == 503 else "E-RATE", "what": "w.", "fix": "f."}
        return travelling(httpx2.Response(status, json=said, headers={"retry-after": after}))

    device = Link(folder, 1e5, now_s=lambda: 1_796_126_400.0, sleep=pauses.append)
    device.close()
    device._http = httpx2.Client(base_url=server.url, transport=httpx2.MockTransport(answer))
    device.standing()
    device.close()
    assert len(pauses) == 2
    assert all(least <= pause < least + 4 * links.FIRST_PAUSE_S for pause in pauses)
