"""Room that one address or a few keys cannot take from all others: connections, memory, long polls, rates."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from served import code, joined, running, send_invitation

from edgewise.apps.gateway.start import LIMITS, Gateway, join
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import certificates, service
from edgewise.drivers.http.limits import FINE, Gatekeeper, ServerLimits
from edgewise.drivers.http.link import Link

ELSEWHERE = "127.0.0.2"
MIB = 2**20


def guest(server: HttpServer, address: str = "127.0.0.1") -> ssl.SSLSocket:
    raw = socket.create_connection(("127.0.0.1", server.port), 5.0, source_address=(address, 0))
    made = certificates.client_context(server.service.authority).wrap_socket(raw, server_hostname="localhost")
    made.settimeout(0.05)
    return made


def is_open(one: ssl.SSLSocket) -> bool:
    try:
        return bool(one.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def asked(link: Link, path: str, query: str) -> bytes:
    """A signed request as it travels."""
    signed = link._signed("GET", path, query, b"", "-", "-")
    lines = [f"GET {path}?{query} HTTP/1.1", "host: localhost", *(f"{k}: {v}" for k, v in signed.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@pytest.mark.slow
def test_one_address_leaves_connections_to_others(tmp_path: Path) -> None:
    try:
        with socket.socket() as tried:
            tried.bind((ELSEWHERE, 0))
    except OSError:
        pytest.skip(f"this machine has no address {ELSEWHERE}")
    with running(tmp_path, ServerLimits(connections=8)) as server, ExitStack() as guests:
        joined(server, tmp_path / "home").close()
        taken = 0
        for _ in range(12):
            try:
                one = guests.enter_context(guest(server, ELSEWHERE))
            except OSError:
                continue  # the server hung up
            taken += is_open(one)
        assert taken == 6
        with Link(tmp_path / "home", patience_s=0.0) as device:
            assert device.standing()["status"] == "approved"
        guests.close()
        give_up = time.monotonic() + 5.0
        while server._listener._socket.open and time.monotonic() < give_up:
            time.sleep(0.01)
        assert server._listener._socket.open == 0
        assert is_open(guests.enter_context(guest(server, ELSEWHERE))), "whoever leaves makes room"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_process_keeps_descriptors_for_its_own_files() -> None:
    script = (
        "import resource; from edgewise.drivers.http.door import connection_room\n"
        "for soft, hard in ((300, 2000), (300, 600)):\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))\n"
        "    print(connection_room(1000), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1000", "1256", "344", "600"]


@pytest.mark.parametrize("keys", [1, 8, 20])
def test_keys_that_take_all_they_can_leave_room_to_others(keys: int) -> None:
    gate = Gatekeeper(ServerLimits())
    for _ in range(40):
        for key in range(keys):
            code(gate.hold, f"evil {key}", 4 * MIB)
    gate.hold("good", 4 * MIB)


@pytest.mark.slow
def test_a_member_has_so_many_long_polls_and_the_newest_stay(tmp_path: Path) -> None:
    with running(tmp_path, ServerLimits(waiting=service.POLLS + 4)) as server, ExitStack() as guests:
        evil = guests.enter_context(joined(server, tmp_path / "evil"))
        good = guests.enter_context(joined(server, tmp_path / "good"))
        ones = [guests.enter_context(guest(server)) for _ in range(service.POLLS + 2)]
        for number, one in enumerate(ones):
            one.settimeout(5.0)
            one.sendall(asked(evil, "/v1/inbox", "after=0&wait=30"))
            give_up = time.monotonic() + 5.0
            while server.service.waiting <= min(number, service.POLLS - 1) and time.monotonic() < give_up:
                time.sleep(0.005)
            if number >= service.POLLS:
                assert ones[number - service.POLLS].recv(12) == b"HTTP/1.1 204"
        assert server.service.waiting == service.POLLS
        with server.service.listening(good.name, good.name) as bell:
            assert bell is not None, "there is room for others"
        send_invitation(server, evil.name)
        assert ones[-1].recv(12) == b"HTTP/1.1 200"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/me", "/v1/blobs/" + "0" * 64])
def test_a_stranger_at_a_gateway_leaves_its_rate_to_devices(tmp_path: Path, path: str) -> None:
    """To the server all requests of a gateway come from one address."""
    with running(tmp_path) as server:
        join(server.url, server.token(Grant("gateway", approved=True)), tmp_path / "gateway").close()
        with Gateway(tmp_path / "gateway") as gateway, joined(server, tmp_path / "home") as device:
            forged = asked(device, path, "x=1").replace(b"x=1", b"x=2")
            sent, begun = 0, time.monotonic()
            context = certificates.client_context(gateway.service.authority)
            raw = socket.create_connection(("127.0.0.1", gateway.port), 5.0)
            with context.wrap_socket(raw, server_hostname="localhost") as one:
                while sent < 100:
                    one.sendall(forged)
                    answer = one.recv(2**16)
                    while not answer.endswith(b"}"):
                        answer += one.recv(2**16)
                    if b"E-RATE" in answer:
                        break
                    sent += 1
            passed = LIMITS.address_burst + LIMITS.address_rate * (time.monotonic() - begun)
            assert sent <= passed / FINE + 1, "each forged request counts as many"
