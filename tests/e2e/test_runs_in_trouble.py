"""Runs that a server plays with real agents, through faults of the machine and of the people who run it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from owned import ended, owned, seen, state, submitted, toy, working
from served import code, contribution, joined, running
from small_disk import fill, small_disk

from edgewise.apps.server import hosting
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import TrainingError
from edgewise.core.vector import Spec
from edgewise.drivers.fleet import served
from edgewise.drivers.fleet.tables import MAIL, ROUNDS, UPLOADS
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.cohort import HttpCohort
from edgewise.drivers.http.limits import ServerLimits
from edgewise.drivers.http.link import Link
from edgewise.engine.ports import Absent, Arrived
from edgewise.engine.trainer import Registered
from edgewise.plan.recipe.recipe import Recipe

pytestmark = pytest.mark.slow
OPEN = "[privacy]\nwords = ['none']\ncohort = 1\n"


def contributions(admin: Link, run: str) -> Counter[tuple[int, str]]:
    """(round, device) -> how often the server has counted it."""
    told = admin.call("GET", f"/v1/runs/{run}/events")["events"]
    return Counter((one["round"], one["device"]) for one in told if one["event"] == "accepted")


def shown(admin: Link, run: str) -> dict[str, Any]:
    return dict(admin.call("GET", f"/v1/runs/{run}"))


def on_frame(
    server: HttpServer, count: int, do: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> list[threading.Thread]:
    """Do something in a thread of its own as soon as so many frames have come from devices."""
    delivered, come, threads = server.service.delivered, [0], list[threading.Thread]()

    def counted() -> None:
        delivered()
        come[0] += 1
        if come[0] == count:
            thread = threading.Thread(target=do, daemon=True)
            thread.start()
            threads.append(thread)

    monkeypatch.setattr(server.service, "delivered", counted)
    return threads


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


@pytest.fixture
def admin(server: HttpServer, tmp_path: Path) -> Iterator[Link]:
    with joined(server, tmp_path / "admin", "admin") as link:
        yield link


def name_of(home: Path) -> str:
    with Link(home) as link:
        return link.name


def test_two_runs_share_a_fleet(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(3)]
    runs = [submitted(server, admin, **{"round.rounds": 2, "round.minimum": 1.0}) for _ in range(2)]
    assert runs[0] != runs[1]
    with working(*homes):
        assert [ended(admin, run) for run in runs] == ["finished"] * 2
    for run in runs:
        counts = contributions(admin, run)
        assert (len(counts), set(counts.values())) == (6, {1})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its agent ends with E-REVOKED
def test_what_a_device_gave_before_it_was_revoked_counts_and_nothing_after(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(3)]
    me = name_of(homes[0])
    run = submitted(server, admin, **{"round.rounds": 3, "round.minimum": 0.5})

    def revoke() -> None:
        seen(lambda: contributions(admin, run)[0, me])
        admin.call("POST", f"/v1/devices/{me}/revoke")

    on_frame(server, 1, revoke, monkeypatch)
    with working(homes[0]) as (gone,), working(*homes[1:]):
        assert ended(admin, run) == "finished"
        gone.join(20.0)
        assert not gone.is_alive(), "its agent ends"
    counts = contributions(admin, run)
    assert counts[0, me] == 1
    assert len(counts) >= 2 * 3 + 1
    assert set(counts.values()) == {1}
    with Link(homes[0]) as link:
        assert code(link.send, run, 2, contribution(me, round=2, run=run)) == "E-REVOKED"
        assert code(link.call, "GET", f"/v1/runs/{run}") == "E-REVOKED"


def test_who_watches_a_run_and_goes_away_changes_nothing(server: HttpServer, admin: Link, tmp_path: Path) -> None:
    """One is interrupted, one is killed. Who comes later sees all rounds."""
    homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(2)]
    run = submitted(server, admin, **{"round.rounds": 12, "round.minimum": 1.0})
    command = [sys.executable, "-m", "edgewise.apps.cli.main", "run", "watch", run[:12]]
    command += ["--home", str(tmp_path / "admin")]
    watching = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    first, killed = watching
    with working(*homes):
        for one in watching:
            assert one.stdout is not None
            assert any(line.startswith("round 1  2 contributions") for line in one.stdout)
        killed.kill()
        first.send_signal(signal.SIGINT)
        for one in watching:
            one.communicate(timeout=30.0)
        assert first.returncode in (130, 0), "0 where the run had ended before"
        assert ended(admin, run) == "finished"
    assert contributions(admin, run).total() == 24
    later = subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=True)
    lines = [line.split("  ")[0] for line in later.stdout.splitlines()]
    assert [line for line in lines if line.startswith("round ")] == [f"round {n}" for n in range(1, 13)]
    assert lines[-1] == "finished"


HIDDEN: dict[str, Any] = {
    "privacy": "hidden", "round.rounds": 2, "round.minimum": 1.0, "trust.malicious_fraction": 0.0,
    "trust.dropout_fraction": 0.0,
}  # fmt: skip
PHASES = [4 * phase + k for phase in range(5) for k in (1, 4)]  # each of four devices sends a frame in each of five


def race(server: HttpServer, run: str, *states: str) -> None:
    """Ask for all of them at once, several times."""
    threads = [threading.Thread(target=code, args=(server.hosting.ask, run, one)) for one in states * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def remains(server: HttpServer, run: str) -> list[Any]:
    """Frames of a run that a server still has."""
    with server.service.database.read() as c:
        rows = [row for t in (MAIL, ROUNDS, UPLOADS) for row in c.execute(sa.select(t).where(t.c.run == run))]
    return [*rows, *(server.service.folder / "spool").iterdir()]


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("gone", [0, 3, 6, 9])
def test_a_round_ends_whoever_drops_out(server: HttpServer, admin: Link, tmp_path: Path, gone: int) -> None:
    """Of ten devices up to nine fail in training. Five have to contribute."""
    homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(10)]
    names = {name_of(home) for home in homes[:gone]}

    def make(recipe: Recipe, folder: Path, device: str, spec: Spec) -> Registered:
        if device in names:
            raise TrainingError("E-TRAIN", "the text of this device is gone.", "look for it.")
        return toy(recipe, folder, device, spec)

    run = submitted(server, admin, **{"round.rounds": 1, "round.minimum": 0.5})
    with working(*homes, make=make):
        assert ended(admin, run) == ("finished" if gone <= 5 else "failed")
    counts = contributions(admin, run)
    assert len(counts) == 10 - gone if gone <= 5 else len(counts) <= 10 - gone  # it ends once too many are gone
    assert set(counts.values()) <= {1}
    assert not names & {device for _, device in counts}
    assert (shown(admin, run)["why"] or "").startswith("" if gone <= 5 else "E-ROUND: ")
    assert seen(lambda: not remains(server, run))


def test_of_two_who_ask_at_once_the_same_one_is_last_everywhere(
    server: HttpServer, admin: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause comes first, and its caller is held up between the database and the run."""
    owned(server, tmp_path / "home", OPEN)
    run, write, held = submitted(server, admin), server.service.database.write, threading.Event()

    def slow(change: Callable[[sa.Connection], Any], **options: Any) -> Any:
        done = write(change, **options)
        if getattr(done, "state", "") == served.PAUSED:
            held.set()
            time.sleep(0.5)
        return done

    monkeypatch.setattr(server.service.database, "write", slow)
    pause = threading.Thread(target=server.hosting.ask, args=(run, served.PAUSED))
    pause.start()
    assert held.wait(10.0)
    server.hosting.ask(run, served.RUNNING)
    pause.join()
    server.hosting.wait(run, 1.5)
    assert state(admin, run) == "running"
    assert run in server.hosting._threads, "it is played"


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("count", PHASES)
def test_a_run_that_is_paused_and_resumed_at_once_in_any_phase_goes_on(
    server: HttpServer, admin: Link, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [owned(server, tmp_path / f"home-{i}", "") for i in range(4)]
    run = submitted(server, admin, **HIDDEN)
    threads = on_frame(server, count, lambda: race(server, run, served.PAUSED, served.RUNNING), monkeypatch)
    with working(*homes):
        assert seen(lambda: threads and not threads[0].is_alive(), within_s=120.0)
        if state(admin, run) == "paused":
            server.hosting.ask(run, served.RUNNING)
        assert ended(admin, run, within_s=120.0) == "finished", "where it is said to run, it is played"
    counts = contributions(admin, run)
    assert (len(counts), set(counts.values())) == (8, {1})


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("count", PHASES)
def test_a_run_that_is_cancelled_in_any_phase_while_others_pause_and_resume_it_leaves_nothing(
    server: HttpServer, admin: Link, tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes = [owned(server, tmp_path / f"home-{i}", "") for i in range(4)]
    run = submitted(server, admin, **HIDDEN)
    asked = (served.PAUSED, served.RUNNING, served.CANCELLED)
    threads = on_frame(server, count, lambda: race(server, run, *asked), monkeypatch)
    with working(*homes) as agents:
        assert seen(lambda: threads and not threads[0].is_alive(), within_s=120.0)
        assert state(admin, run) == "cancelled"
        assert seen(lambda: run not in server.hosting._threads)
        assert all(agent.is_alive() for agent in agents)
        assert code(server.hosting.ask, run, served.RUNNING) == "E-CONFLICT"
    assert remains(server, run) == []
    assert max(contributions(admin, run).values(), default=0) <= 1


def test_a_run_whose_disk_is_full_says_so_and_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.2)
    monkeypatch.setattr(hosting, "FULL_S", 0.2)
    with (
        small_disk(tmp_path / "disk") as disk,
        HttpServer(disk / "server", limits=ServerLimits(reserve_bytes=2**16)) as server,
        joined(server, tmp_path / "admin", "admin") as admin,
    ):
        homes = [owned(server, tmp_path / f"home-{i}", OPEN) for i in range(3)]
        delivered, come, full = server.service.delivered, [0], threading.Event()

        def counted() -> None:
            come[0] += 1
            if come[0] == 6:  # the second round is complete, and cannot be committed
                fill(disk, 0)
                server.service._free = (0, -1.0)  # it looks at its disk once in a second
                full.set()
            delivered()  # only now, because the round is committed as soon as this wakes it

        taken, receive = [0], HttpCohort.receive

        def held(cohort: HttpCohort, timeout_s: float) -> Arrived | Absent | None:
            found = receive(cohort, timeout_s)
            taken[0] += isinstance(found, Arrived)
            if taken[0] == 6:  # it may find the last frame before it is woken
                full.wait(30.0)
            return found

        monkeypatch.setattr(HttpCohort, "receive", held)
        monkeypatch.setattr(server.service, "delivered", counted)
        run = submitted(server, admin, **{"round.rounds": 3, "round.minimum": 1.0})
        with working(*homes, patience_s=60.0):
            assert full.wait(30.0)
            assert seen(lambda: (shown(admin, run)["why"] or "").startswith("E-DISK: "))
            assert shown(admin, run)["state"] == "running"
            (disk / "filler").unlink()
            assert ended(admin, run) == "finished"
        assert shown(admin, run)["why"] is None
        counts = contributions(admin, run)
        assert (len(counts), set(counts.values())) == (9, {1}), "each device once in each of three rounds"
