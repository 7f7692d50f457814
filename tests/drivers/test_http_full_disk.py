"""A server whose disk is full: what it acknowledged stays, what it cannot keep it refuses, and it goes on by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import RUN, code, contribution, joined, send_invitation
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


MOST, LATER = 60, 4  # frames that come before the disk is full, and while it is; each is of a round of its own


def sent(device: Link, round: int) -> tuple[int, int]:
    """Send a frame, whole or in chunks. Returns its number and its round."""
    raw = contribution(device.name, bytes((CHUNK, 5 * CHUNK)[round % 2]), round)
    return device.send(RUN, round, raw), round


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
    taken: dict[int, int] = {}  # number of a frame -> its round
    with HttpServer(disk / "server", limits=limits) as server, logs.opened_log(disk / "server" / "server.log"):
        with joined(server, tmp_path / "home") as device:
            for round in range(MOST + LATER):
                send_invitation(server, device.name, round)
            device.patience_s = 0.0
            fill(disk, 2**21 + 2 * left)
            said, round = "", 0
            while not said and round < MOST:
                said = code(lambda round=round: taken.update([sent(device, round)]))  # type: ignore[misc]
                round += 1
            assert said == "E-DISK"
            assert len(taken) > 3
            fill(disk, left)
            refused = range(MOST, MOST + LATER)
            time.sleep(1.1)  # how old the server's look at the disk may be
            assert {code(sent, device, round) for round in refused} == {"E-DISK"}
            raw = contribution(device.name, bytes(CHUNK), MOST)
            headers = device._signed("POST", "/v1/outbox", "", raw, RUN, str(MOST))
            answer = device._http.post("/v1/outbox", content=raw, headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert device._http.get("/readyz").status_code == 503
            assert device._http.get("/healthz").status_code == 200

        def make_room(_: float) -> None:
            (disk / "filler").unlink(missing_ok=True)
            time.sleep(0.3)

        with Link(tmp_path / "home", 60.0, sleep=make_room) as device:
            taken.update(sent(device, round) for round in refused)
            for number, round in taken.items():
                assert sent(device, round) == (number, round)
            give_up = time.monotonic() + 10.0
            while device._http.get("/readyz").status_code != 200:
                assert time.monotonic() < give_up
                time.sleep(0.1)
        assert not any(outcome == "E-SERVER" for _, _, outcome in server.service.meter.outcomes())
    with HttpServer(disk / "server", limits=limits) as server:
        with server.service.database.read() as c:
            found = [(x, mailboxes.round_key(c, RUN, x.round)) for x in mailboxes.arrivals(c, RUN, 0, 1000)]
        for letter, key in found:
            raw = mailboxes.opened(letter, key, server.service.chunks, CHUNK)
            assert frame.from_device(raw, 2**20).round == letter.round
    assert {x.number: x.round for x, _ in found} == taken, "each that was acknowledged, and no other"
