"""Networks at their worst: recorded traffic, requests that come twice, answers that never come, partitions, and agents
that are killed amid an upload."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from proxy import Way, proxied
from served import RUN, contribution, joined, running, send_invitation

from edgewise.apps.server.start import HttpServer, Tls
from edgewise.drivers.fleet import mailboxes, uploads
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import home
from edgewise.drivers.http import link as links
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link

CHUNK, SLACK = 2**16, 2**14


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(links, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[HttpServer]:
    """A server without TLS: who is in between sees and repeats what is said, as a proxy of the operator's could."""
    with HttpServer(tmp_path / "server", tls=Tls(off=True)) as made:
        yield made


def moved(folder: Path, port: int, scheme: str = "http") -> Path:
    """The folder of a device, whose server is at another port."""
    home.save(folder, msgspec.structs.replace(home.load(folder), url=f"{scheme}://127.0.0.1:{port}"))
    return folder


def enrolled(server: HttpServer, folder: Path) -> Path:
    token = server.token(Grant(approved=True))
    Link.join(f"http://127.0.0.1:{server.port}", token, folder, plain=True, patience_s=10.0).close()
    return folder


def state(server: HttpServer) -> list[object]:
    """All that requests can change, but for nonces."""
    from edgewise.drivers.fleet.tables import META

    with server.service.database.read() as c:
        return [
            c.execute(t.select()).all()
            for n, t in META.tables.items()
            if n not in ("nonces", "forgotten_nonces", "leases")
        ]


def again(port: int, recorded: bytes) -> bytes:
    """Send recorded bytes; what comes until each of their requests is answered, or the connection ends."""
    wanted, answers = recorded.count(b" HTTP/1.1\r\n"), b""
    with socket.create_connection(("127.0.0.1", port), 10.0) as raw, suppress(ConnectionError):
        raw.sendall(recorded)
        while wanted == 0 or answers.count(b"HTTP/1.1 ") < wanted or not answers.endswith(b"}"):
            if not (piece := raw.recv(2**16)):
                break
            answers += piece
            if wanted and answers.count(b"HTTP/1.1 ") == wanted and b"HTTP/1.1 204" in answers[-300:]:
                break  # it has no body
    return answers


@pytest.mark.slow
def test_recorded_traffic_does_nothing_a_second_time(plain: HttpServer, tmp_path: Path) -> None:
    """All that a device has said, enrolment and an upload included; at its server, and at another one."""
    with proxied(plain.port) as proxy:
        token = plain.token(Grant(approved=True, uses=5))
        with Link.join(proxy.url.replace("https", "http"), token, tmp_path / "home", plain=True) as device:
            send_invitation(plain, device.name)
            device.poll(0, 0.0)
            device.send(RUN, 0, contribution(device.name, bytes(100)))
            upload = device._upload(RUN, 0, bytes(3 * CHUNK))
            assert upload
    before = state(plain)
    recorded = [bytes(sent) for sent in proxy.sent]
    assert b"POST /v1/outbox" in b"".join(recorded)
    for sent in recorded:
        answers = again(plain.port, sent)
        changing = sent.count(b"POST /v1/") + sent.count(b"PUT /v1/")
        assert answers.count(b"E-REPLAY") + answers.count(b"E-OFFSET") == changing
    assert state(plain) == before
    with HttpServer(tmp_path / "other", tls=Tls(off=True)) as other:
        for sent in recorded:
            answers = again(other.port, sent)
            assert answers.count(b"HTTP/1.1 200") == sent.count(b"GET /v1/server"), "it says who it is, and no more"


@pytest.mark.slow
def test_recorded_tls_does_nothing(tmp_path: Path) -> None:
    with running(tmp_path) as server, proxied(server.port) as proxy:
        joined(server, tmp_path / "home").close()
        with Link(moved(tmp_path / "home", proxy.port, "https"), 10.0) as device:
            send_invitation(server, device.name)
            device.send(RUN, 0, contribution(device.name))
        before, visits = state(server), server.service.meter.visits
        for sent in proxy.sent:
            again(server.port, bytes(sent))
        assert (state(server), server.service.meter.visits) == (before, visits)


@pytest.mark.slow
def test_a_request_that_comes_twice_counts_once(plain: HttpServer, tmp_path: Path) -> None:
    """The copy comes first: the device is told that its request is a replay, and signs it anew."""
    enrolled(plain, tmp_path / "home")
    with proxied(plain.port, lambda n: Way(twice=True)) as proxy:

        def pause(_: float) -> None:
            proxy.doubling = False

        with Link(moved(tmp_path / "home", proxy.port), 10.0, sleep=pause) as device:
            send_invitation(plain, device.name)
            raw = contribution(device.name, bytes(100))
            number = device.send(RUN, 0, raw)
            proxy.doubling = True
            assert device.send(RUN, 0, raw) == number
            proxy.doubling = True
            upload = device._upload(RUN, 0, bytes(3 * CHUNK))
            with plain.service.database.read() as c:
                assert uploads.find(c, upload, device.name).received == 3 * CHUNK
                assert [letter.number for letter in mailboxes.arrivals(c, RUN, 0, 10)] == [number]


@pytest.mark.slow
def test_an_answer_that_never_comes_costs_a_retry(
    plain: HttpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeout = links.timeout(0.3)
    monkeypatch.setattr(links, "timeout", lambda _: timeout)
    enrolled(plain, tmp_path / "home")
    way = lambda n: Way(mute=True) if n == 0 else Way()  # noqa: E731
    with proxied(plain.port, way) as proxy, Link(moved(tmp_path / "home", proxy.port), 10.0) as device:
        send_invitation(plain, device.name)
        raw = contribution(device.name)
        number = device.send(RUN, 0, raw)
        assert proxy.connections >= 2
        with plain.service.database.read() as c:
            assert [letter.number for letter in mailboxes.arrivals(c, RUN, 0, 10)] == [number]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("cut", [False, True], ids=["flows on", "connections are gone"])
def test_mail_of_a_partition_comes_when_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    """A long poll is under way when the network parts; afterwards it flows on, or a router has forgotten it."""
    monkeypatch.setattr(links, "ANSWER_S", 0.5)
    with running(tmp_path, ServerLimits(wait_s=0.5)) as server, proxied(server.port) as proxy:
        joined(server, tmp_path / "home").close()
        got: list[int] = []
        with Link(moved(tmp_path / "home", proxy.port, "https"), 30.0) as device:

            def poll() -> None:
                while not got:
                    if (mail := device.poll(0, 0.5)) is not None:
                        got.append(mail.number)

            thread = threading.Thread(target=poll)
            thread.start()
            while not server.service.waiting:
                time.sleep(0.005)
            proxy.part()
            number = send_invitation(server, device.name)
            time.sleep(0.3)
            assert not got
            if cut:
                proxy.cut_all()
            proxy.heal()
            thread.join(20.0)
            assert got == [number]
            raw = contribution(device.name)
            assert device.send(RUN, 0, raw) == device.send(RUN, 0, raw)


AGENT = """
import sys
from pathlib import Path
from edgewise.drivers.http.link import Link
home, frame = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
with Link(home, 60.0) as device:
    print(device.send("run-1", 0, frame), flush=True)
"""


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_an_agent_that_is_killed_amid_an_upload_sends_one_chunk_again_at_most(tmp_path: Path, part: float) -> None:
    """A process, killed by SIGKILL when so much of its frame has passed a slow link; another one goes on."""
    size = 40 * CHUNK
    with running(tmp_path) as server, proxied(server.port, lambda _: Way(rate=2.0**20)) as proxy:
        joined(server, tmp_path / "home").close()
        folder = moved(tmp_path / "home", proxy.port, "https")
        with Link(folder) as device:
            name = device.name
        send_invitation(server, name)
        raw = contribution(name, bytes(size))
        (tmp_path / "frame").write_bytes(raw)
        command = [sys.executable, "-c", AGENT, str(folder), str(tmp_path / "frame")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
            while proxy.up < part * size:
                assert agent.poll() is None
                time.sleep(0.005)
            agent.send_signal(signal.SIGKILL)
        killed = proxy.up
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert killed < size
        assert proxy.up < len(raw) + CHUNK + 4 * SLACK + size // 40, "headers and TLS of 42 requests included"
        with server.service.database.read() as c:
            key, (letter,) = mailboxes.round_key(c, RUN, 0), mailboxes.arrivals(c, RUN, 0, 10)
        assert letter.number == int(done.stdout)
        assert mailboxes.opened(letter, key, server.service.chunks, CHUNK) == raw
