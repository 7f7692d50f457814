"""Runs that a server plays with real agents, through faults of the machine and of the people who run it."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from owned import ended, owned, seen, submitted, working
from served import joined
from small_disk import fill, small_disk

from edgewise.apps.server import hosting
from edgewise.apps.server.start import Server
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.limits import Limits
from edgewise.drivers.http.link import Link

pytestmark = pytest.mark.slow
OPEN = "[privacy]\nwords = ['none']\ncohort = 1\n"


def contributions(admin: Link, run: str) -> Counter[tuple[int, str]]:
    """(round, device) -> how often the server has counted it."""
    told = admin.call("GET", f"/v1/runs/{run}/events")["events"]
    return Counter((one["round"], one["device"]) for one in told if one["event"] == "accepted")


def shown(admin: Link, run: str) -> dict[str, Any]:
    return dict(admin.call("GET", f"/v1/runs/{run}"))


def test_a_run_whose_disk_is_full_says_so_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(hosting, "FULL_S", 0.2)
    with (
        small_disk(tmp_path / "disk") as disk,
        Server(disk / "server", limits=Limits(reserve_bytes=2**16)) as server,
        joined(server, tmp_path / "admin", "admin") as admin,
    ):
        homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(3)]
        delivered, come, full = server.service.delivered, [0], threading.Event()

        def counted() -> None:
            delivered()
            come[0] += 1
            if come[0] == 6:  # the second round is complete, and cannot be committed
                fill(disk, 0)
                server.service._free = (0, -1.0)  # it looks at its disk once in a second
                full.set()

        monkeypatch.setattr(server.service, "delivered", counted)
        run = submitted(server, admin, **{"round.rounds": 3, "round.minimum": 1.0})
        with working(*homes, patience_s=60.0):
            assert full.wait(30.0)
            assert seen(lambda: shown(admin, run)["why"].startswith("E-DISK: "))
            assert shown(admin, run)["state"] == "running"
            (disk / "filler").unlink()
            assert ended(admin, run) == "finished"
        assert shown(admin, run)["why"] == ""
        counts = contributions(admin, run)
        assert (len(counts), set(counts.values())) == (9, {1}), "each device once in each of three rounds"
