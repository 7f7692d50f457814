"""A server whose clock jumps: it refuses what it cannot judge, forgets nothing that it needs, and goes on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import RUN, code, contribution, count, send_invitation

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.link import Link
from edgewise.drivers.http.signatures import TOLERANCE_S, Proof

DAY = 86400.0


class Clock:
    """The time, and what it is off."""

    def __init__(self) -> None:
        self.off_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.off_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(tmp_path: Path, clock: Clock) -> Iterator[HttpServer]:
    with HttpServer(tmp_path / "server", now_s=clock) as made:
        yield made


@pytest.fixture
def device(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with Link.join(server.url, server.token(Grant(approved=True)), tmp_path / "home", patience_s=10.0) as made:
        made.patience_s = 0.0
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("jump_s", [-DAY, DAY, -2 * TOLERANCE_S, 2 * TOLERANCE_S])
def test_a_jump_refuses_devices_and_harms_nothing(
    server: HttpServer, device: Link, clock: Clock, jump_s: float
) -> None:
    send_invitation(server, device.name)
    raw = contribution(device.name)
    number = device.send(RUN, 0, raw)
    clock.off_s = jump_s
    assert code(device.send, RUN, 0, raw) == "E-CLOCK"
    server.service.database.write(lambda c: mailboxes.open_round(c, "other", 0))  # its own lease goes on
    assert server.service.checks() == {"database": True, "lease": True, "blobs": True, "disk": True}
    with Link(device_home(device, server), 0.0, clock) as jumped:
        assert jumped.send(RUN, 0, raw) == number, "a device with the same wrong time is served"
    clock.off_s = 0.0
    assert device.send(RUN, 0, raw) == number
    assert device.poll(0, 0.0) is not None


def device_home(device: Link, server: HttpServer) -> Path:
    return server.service.folder.parent / "home"


def test_what_was_taken_stays_taken_when_the_clock_goes_ahead_and_comes_back(
    server: HttpServer, device: Link, clock: Clock
) -> None:
    send_invitation(server, device.name)
    raw = contribution(device.name)
    count(device, raw)
    headers = device._signed("POST", "/v1/outbox", "", raw, RUN, "0")
    send = lambda: device._http.post("/v1/outbox", content=raw, headers=headers)  # noqa: E731
    assert send().status_code == 200
    clock.off_s = DAY
    service = server.service

    sweeping = (n.to_bytes(16, "big") for n in range(10_000))  # the request of such a nonce looks for old ones
    nonce = next(n for n in sweeping if hashlib.sha256(b"d" * 32 + n).digest()[0] == 0)
    proof = Proof("d" * 32, nonce, int(clock()), bytes(32), None, None)
    service.database.write(lambda c: service.spend(c, proof))
    clock.off_s = 0.0
    assert send().json()["code"] == "E-REPLAY"


@pytest.mark.slow
def test_a_token_outlives_a_jump(server: HttpServer, clock: Clock, tmp_path: Path) -> None:
    token = server.token(Grant(approved=True, expires_in_s=60.0))
    clock.off_s = DAY
    home, join = tmp_path / "new", lambda: Link.join(server.url, token, tmp_path / "new", patience_s=10.0).close()
    assert code(join) == "E-CLOCK"
    clock.off_s = 0.0
    assert code(join) == ""
    assert home.is_dir()
