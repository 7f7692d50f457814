"""A device whose whole folder is put back to an older copy, or used twice: no update leaves a second time, no noise is
drawn twice for one update, and no charge is forgotten. The server is honest, and the agents are real ones.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from owned import owned, seen, submitted, toy
from served import code, joined, running

from edgewise.apps.device import agent, status
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import counters, mailboxes
from edgewise.drivers.http.frame_counter import FrameCounter
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.counter_file import LEDGERS

DP: dict[str, Any] = {
    "privacy": "local_dp", "metrics": "none", "stage": [], "merge": {"kind": "sum"}, "round.rounds": 2,
    "dp.noise_multiplier": 4.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.deadline_s": 900.0, "round.minimum": 1.0,
}  # fmt: skip
POLICY = "[privacy]\nwords = ['local_dp']\ncohort = 1\n[budget]\nepsilon = 1e4\n"


@pytest.fixture
def came(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], set[bytes]]:
    """(device, round) -> the digests of the contributions that reached the server, also of refused ones."""
    found, accept = defaultdict[tuple[str, int], set[bytes]](set), mailboxes.accept

    def noted(c: Any, message: Any, raw: bytes, digest: bytes, *more: Any) -> int:
        if mailboxes.phase(message) == "contribution":
            found[message.device, message.round].add(digest)
        return accept(c, message, raw, digest, *more)

    monkeypatch.setattr(mailboxes, "accept", noted)
    return found


def work(home: Path, until: Callable[[], bool] = lambda: False) -> str:
    """Be the agent of a folder, for 30 s at most. Returns the code of the error that ended it."""
    give_up = time.monotonic() + 30.0
    over = lambda: until() or time.monotonic() > give_up  # noqa: E731
    return code(lambda: agent.work(home, until=over, make=toy, wait_s=0.2, patience_s=10.0))


def enrolled(server: HttpServer, folder: Path) -> Path:
    """A device, and another one that is there and does not answer. So the rounds stay open."""
    with Link(owned(server, folder / "other", POLICY)) as other:
        other.standing()
    return owned(server, folder / "home", POLICY)


def undefended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameCounter, "recall", lambda self: None)
    monkeypatch.setattr(FrameCounter, "count", lambda self, digest: None)
    monkeypatch.setattr(counters, "check", lambda c, device, digest: None)


@pytest.mark.slow
@pytest.mark.parametrize("defended", [True, False])
def test_an_update_leaves_once_whatever_folder_is_put_back(
    tmp_path: Path, came: dict[tuple[str, int], set[bytes]], monkeypatch: pytest.MonkeyPatch, defended: bool
) -> None:
    if not defended:
        undefended(monkeypatch)
    home, copy = tmp_path / "home", tmp_path / "copy"
    with running(tmp_path) as server, joined(server, tmp_path / "admin", "admin") as admin:
        enrolled(server, tmp_path)
        with Link(home) as link:
            me = link.name
        submitted(server, admin, **DP)
        shutil.copytree(home, copy)
        work(home, lambda: (me, 0) in came)
        shutil.rmtree(home)
        shutil.copytree(copy, home)
        ended = threading.Event()
        timer = threading.Timer(6.0, ended.set)
        timer.start()
        said = work(home, lambda: ended.is_set() or len(came[me, 0]) > 1)
        timer.cancel()
        if not defended:
            assert len(came[me, 0]) == 2, "two noises for one update: their mean has half of the variance"
            return
        assert said == "E-OLDER"
        assert len(came[me, 0]) == 1
        found = status.found(home, 0.0)
        assert found["state"] == "stopped"
        assert "E-OLDER" in found["why"]
        assert work(home) == "E-OLDER", "until its owner decides"


@pytest.mark.slow
def test_of_two_copies_that_run_one_stops(tmp_path: Path, came: dict[tuple[str, int], set[bytes]]) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy"
    with running(tmp_path) as server, joined(server, tmp_path / "admin", "admin") as admin:
        enrolled(server, tmp_path)
        shutil.copytree(home, copy)
        stop, said = threading.Event(), list[str]()
        agents = [
            threading.Thread(target=lambda place=place: said.append(work(place, stop.is_set))) for place in (home, copy)
        ]
        for one in agents:
            one.start()
        submitted(server, admin, **DP)
        assert seen(lambda: said, 20.0) == ["E-OLDER"]
        stop.set()
        for one in agents:
            one.join()
        assert sorted(said) == ["", "E-OLDER"]
        assert [len(digests) for digests in came.values()] == [1]


@pytest.mark.slow
def test_an_owner_comes_back_with_a_new_key(tmp_path: Path, came: dict[tuple[str, int], set[bytes]]) -> None:
    """The runs of the old key do not ask the new one."""
    from edgewise.apps.device import leave

    home, copy = tmp_path / "home", tmp_path / "copy"
    with running(tmp_path) as server, joined(server, tmp_path / "admin", "admin") as admin:
        enrolled(server, tmp_path)
        with Link(home) as link:
            me = link.name
        submitted(server, admin, **DP)
        shutil.copytree(home, copy)
        work(home, lambda: (me, 0) in came)
        assert work(copy) == "E-OLDER"
        leave.leave(copy, keep_records=True)
        owned(server, copy, POLICY)
        assert work(copy) == "E-OLDER", "the kept ledger lacks charges"
        shutil.rmtree(copy / LEDGERS)
        ended = threading.Event()
        threading.Timer(1.0, ended.set).start()
        assert work(copy, ended.is_set) == ""
        assert {device for device, _ in came} == {me}
