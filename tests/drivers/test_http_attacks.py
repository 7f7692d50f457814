"""Callers that want to keep a server busy, from another address: it serves the others meanwhile."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from served import RUN, contribution, joined, running, send_invitation

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.http import certificates
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link

ELSEWHERE = "127.0.0.2"
LIMITS = ServerLimits(header_s=0.5, stall_s=0.5, holder_bytes=2**20)
TOGETHER, ROUND_TRIPS = 40, 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    try:
        with socket.socket() as tried:
            tried.bind((ELSEWHERE, 0))
    except OSError:
        pytest.skip(f"this machine has no address {ELSEWHERE}")
    with running(tmp_path_factory.mktemp("attacked"), LIMITS) as made:
        yield made


@pytest.fixture(scope="module")
def evil(server: HttpServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    """A device that was let in and turns against the server."""
    with joined(server, tmp_path_factory.mktemp("evil") / "home") as made:
        yield made


def plain(server: HttpServer) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", server.port), 5.0, source_address=(ELSEWHERE, 0))
    made.settimeout(0.05)
    return made


def inside(server: HttpServer) -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", server.port), 5.0, source_address=(ELSEWHERE, 0))
    made = certificates.client_context(server.service.authority).wrap_socket(raw, server_hostname="localhost")
    made.settimeout(0.05)
    return made


def head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def signed(evil: Link, length: int) -> bytes:
    headers = evil._signed("POST", "/v1/outbox", "", bytes(length), RUN, "0")
    return head("POST", "/v1/outbox", {**headers, "content-length": str(length)})


# Each opens connections and says what is sent first, and then again and again.
ATTACKS: dict[str, Callable[[HttpServer, Link], tuple[socket.socket, bytes, bytes]]] = {
    "nothing, without TLS": lambda s, e: (plain(s), b"", b""),
    "garbage, without TLS": lambda s, e: (plain(s), random.randbytes(2000), random.randbytes(50)),
    "headers, a byte at a time": lambda s, e: (inside(s), b"GET /v1/inbox HTTP/1.1\r\nhost: ", b"a"),
    "headers without end": lambda s, e: (inside(s), b"GET / HTTP/1.1\r\nhost: a\r\n", b"a: b\r\n" * 500),
    "a header of a megabyte": lambda s, e: (inside(s), b"GET / HTTP/1.1\r\nhost: a\r\nb: ", b"c" * 2**14),
    "bodies, a byte at a time": lambda s, e: (inside(s), signed(e, 10_000), b"x"),
    "bodies that fill the memory": lambda s, e: (inside(s), signed(e, 2**20), bytes(2**14)),
    "announced terabytes": lambda s, e: (inside(s), head("POST", "/v1/outbox", {"content-length": str(2**40)}), b""),
    "requests, as fast as it goes": lambda s, e: (inside(s), head("GET", "/v1/me", {}), head("GET", "/v1/me", {}) * 20),
    "long polls of strangers": lambda s, e: (inside(s), head("GET", "/v1/inbox?wait=30", {}), b""),
    "ranges": lambda s, e: (inside(s), head("GET", "/v1/blobs/" + "0" * 64, {"range": "bytes=0-1," * 1000}), b""),
}  # fmt: skip


def attack(server: HttpServer, evil: Link, name: str, over: threading.Event) -> None:
    """Keep many connections at it until it is over."""
    open_ones: list[tuple[socket.socket, bytes]] = []
    while not over.is_set():
        with suppress(OSError):
            if len(open_ones) < TOGETHER:
                raw, first, more = ATTACKS[name](server, evil)
                open_ones.append((raw, more))
                raw.sendall(first)
        for one in list(open_ones):
            raw, more = one
            try:
                raw.sendall(more)
                raw.recv(2**16)
            except TimeoutError:
                pass
            except OSError:  # the server has ended it: another one
                raw.close()
                open_ones.remove(one)
    for raw, _ in open_ones:
        raw.close()


@pytest.mark.slow
@pytest.mark.long(sample=2)
@pytest.mark.parametrize("name", ATTACKS)
def test_others_are_served_meanwhile(server: HttpServer, evil: Link, tmp_path: Path, name: str) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=attack, args=(server, evil, name, over)) for _ in range(2)]
    with joined(server, tmp_path / "home") as device:
        send_invitation(server, evil.name)
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        try:
            device.patience_s = 0.0  # no second chance
            for round in range(ROUND_TRIPS):
                number = send_invitation(server, device.name, round)
                mail = device.poll(number - 1, 5.0)
                assert mail is not None
                assert device.send(RUN, round, contribution(device.name, bytes(100), round)) > number
        finally:
            over.set()
            for thread in threads:
                thread.join()
    give_up = time.monotonic() + 10.0
    while server.service.gate.in_flight and time.monotonic() < give_up:
        time.sleep(0.05)
    assert server.service.gate.in_flight == 0
    assert not any(outcome == "E-SERVER" for _, _, outcome in server.service.meter.outcomes())
    server.service.database.write(lambda c: mailboxes.close(c, RUN))
