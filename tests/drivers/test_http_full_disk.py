"""A server whose disk is full: what it acknowledged stays, what it cannot keep it refuses, and it goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import RUN, code, joined, send_invitation
from small_disk import fill, small_disk

from edgewise.apps.server.start import HttpServer
from edgewise.core import frame
from edgewise.drivers import logs
from edgewise.drivers.fleet import mailboxes, uploads
from edgewise.drivers.http import link as links
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link

CHUNK = 2**16


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as made:
        yield made


def step(device: str, number: int, size: int) -> bytes:
    """A frame of a place of its own."""
    kind = f"kind-{number:04d}".encode()
    body = b"\x82\xa4type" + bytes([0xA0 + len(kind)]) + kind + b"\xa4body\xc6" + size.to_bytes(4, "big") + bytes(size)
    return frame.dump(frame.Step(run=RUN, round=0, device=device, body=body))


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("left", [2**20, 0], ids=["the reserve is left", "nothing is left"])
def test_what_is_acknowledged_stays_and_the_rest_waits(
    disk: Path, tmp_path: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames come until the disk is full, whole and in chunks. Then there is room, and all of them are there."""
    monkeypatch.setattr(uploads, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(links, "INLINE_BYTES", 2 * CHUNK)
    limits = ServerLimits(reserve_bytes=2 * left)
    sizes = [CHUNK, 5 * CHUNK]
    taken: dict[int, bytes] = {}
    with HttpServer(disk / "server", limits=limits) as server, logs.opened(disk / "server" / "server.log"):
        with joined(server, tmp_path / "home") as device:
            send_invitation(server, device.name)
            device.patience_s = 0.0
            fill(disk, 2**21 + 2 * left)
            said, number = "", 0
            while not said and number < 200:
                raw = step(device.name, number, sizes[number % 2])
                said = code(lambda raw=raw: taken.update({device.send(RUN, 0, raw): raw}))  # type: ignore[misc]
                number += 1
            assert said == "E-DISK"
            assert len(taken) > 3
            fill(disk, left)
            refused = [step(device.name, 1000 + n, sizes[n % 2]) for n in range(4)]
            time.sleep(1.1)  # how old the server's look at the disk may be
            assert {code(device.send, RUN, 0, raw) for raw in refused} == {"E-DISK"}
            headers = device._signed("POST", "/v1/outbox", "", refused[0], RUN, "0")
            answer = device._http.post("/v1/outbox", content=refused[0], headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert device._http.get("/readyz").status_code == 503
            assert device._http.get("/healthz").status_code == 200

        def make_room(_: float) -> None:
            (disk / "filler").unlink(missing_ok=True)
            time.sleep(0.3)

        with Link(tmp_path / "home", 60.0, sleep=make_room) as device:
            for raw in refused:
                taken[device.send(RUN, 0, raw)] = raw
            for number, raw in list(taken.items()):
                assert device.send(RUN, 0, raw) == number
            give_up = time.monotonic() + 10.0
            while device._http.get("/readyz").status_code != 200:
                assert time.monotonic() < give_up
                time.sleep(0.1)
        assert not any(outcome == "E-SERVER" for _, _, outcome in server.service.meter.outcomes())
    with HttpServer(disk / "server", limits=limits) as server:
        with server.service.database.read() as c:
            key, letters = mailboxes.round_key(c, RUN, 0), mailboxes.arrivals(c, RUN, 0, 1000)
        found = {x.number: mailboxes.opened(x, key, server.service.chunks, CHUNK) for x in letters}
    assert found == taken, "each that was acknowledged, and no other"
