"""Servers over one database and one folder: devices call any of them, and one plays the runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import databases
import pytest
import sqlalchemy as sa
from scripted import RECIPE, device, submission, training
from served import code

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import mailboxes, served
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.tables import LEASES, PUBLICATIONS
from edgewise.drivers.fleet.tables import ROUNDS as OPEN_ROUNDS
from edgewise.drivers.storage import fencing, schema
from edgewise.drivers.storage.run_store import RunStore

ROUNDS = 6


@contextmanager
def serving(folder: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """A server as a process, listening; killed at the end."""
    command = [
        sys.executable,
        "-m",
        "edgewise.apps.cli.main",
        "serve",
        str(folder),
        "--listen",
        "127.0.0.1:0",
        "--json",
    ]
    environment = {**os.environ, "EDGEWISE_DATABASE": url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("{")
            yield server
        finally:
            server.send_signal(signal.SIGCONT)
            server.kill()


def until(found: object, wait_s: float = 60.0) -> bool:
    end = time.monotonic() + wait_s
    while not found() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.05)
    return bool(found())  # type: ignore[operator]


def holder(database: Database) -> int:
    with database.read() as c:
        return int(c.execute(sa.select(LEASES.c.number).where(LEASES.c.until_s > 0)).scalar() or 0)


def played(folder: Path) -> list[int]:
    """The rounds that a run has committed, from its own record."""
    engine = sa.create_engine(f"sqlite:///{folder / 'run.db'}")
    with engine.connect() as c:
        found = [int(row.round) for row in c.execute(sa.select(schema.ROUNDS.c.round).order_by(schema.ROUNDS.c.round))]
    engine.dispose()
    return found


@pytest.mark.slow
@pytest.mark.long(sample=0)  # half a minute
def test_another_server_goes_on_with_a_run_and_the_stopped_one_commits_nothing_more(tmp_path: Path) -> None:
    """Devices call the second server only. The first one plays the run, stands still past its lease, and wakes up."""
    url, folder = databases.new_url(), tmp_path / "server"
    with serving(folder, url) as leader:
        with Database(folder, url=url) as looking:
            assert until(lambda: holder(looking) == 1)
        with HttpServer(folder, database=url) as server:
            devices = [device(server, tmp_path / f"device{i}") for i in range(2)]
            recipe = {**RECIPE, "round": {"rounds": ROUNDS, "minimum": 1.0}}
            run = server.hosting.submit(submission(recipe, server), "me").run
            out = folder / "runs" / run[:32]
            with training(devices):
                assert until(lambda: max(played(out)) >= 1)
                assert not server.service.database.leads
                leader.send_signal(signal.SIGSTOP)
                assert until(lambda: server.service.database.leads)
                before = max(played(out))
                assert until(lambda: max(played(out)) > before)
                leader.send_signal(signal.SIGCONT)

                def state() -> str:
                    with server.service.database.read() as c:
                        return served.find(c, run).state

                assert until(lambda: state() == served.FINISHED), state()
            assert played(out) == list(range(-1, ROUNDS))
            assert server.service.database.number == holder(server.service.database) == 2
            assert leader.poll() is None
            with RunStore(out, fence=2) as store:
                kinds = [e.round for e in store.events("round_finished")]  # type: ignore[attr-defined]
            assert kinds == list(range(ROUNDS))


@pytest.mark.slow
@pytest.mark.parametrize("kind", databases.KINDS)
def test_a_server_that_takes_the_lead_withdraws_the_mail_of_runs_that_were_cancelled_without_one(
    tmp_path: Path, kind: str
) -> None:
    """The round's key goes too, so that no backup taken from now on can open the frames of the round."""
    url, folder = databases.url_of(kind), tmp_path / "server"
    with HttpServer(folder, database=url) as server:
        device(server, tmp_path / "device")
        database = server.service.database
        assert until(lambda: database.leads)
        run = server.hosting.submit(submission(RECIPE, server), "me").run
        server.hosting.ask(run, served.PAUSED)
        server.hosting.wait(run)
        other = server.hosting.submit(submission({**RECIPE, "name": "other"}, server), "me").run

    def left(database: Database) -> list[set[str]]:
        with database.read() as c:
            return [{str(row.run) for row in c.execute(sa.select(t.c.run))} for t in (OPEN_ROUNDS, PUBLICATIONS)]

    with Database(folder, url=url) as database:
        for one in (run, other):
            database.write(lambda c, one=one: mailboxes.open_round(c, one, 0))
        database.write(lambda c: served.ask(c, run, served.CANCELLED))
        assert left(database) == [{run, other}, {run, other}]
    with HttpServer(folder, database=url) as server:
        assert until(lambda: run not in set().union(*left(server.service.database)), 20.0)
        assert left(server.service.database) == [{other}, {other}], "a run that goes on keeps its mail"


def test_a_server_that_is_overtaken_while_it_opens_a_run_renames_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have checked their numbers before either takes over the memory of devices."""
    with RunStore(tmp_path / "run", fence=1) as made:
        made.create("run", "name", {}, {})
    take, opened = fencing.fence_run, list[RunStore]()

    def overtaken(engine: sa.Engine, journals: Path, number: int) -> None:
        take(engine, journals, number)
        if number == 1:
            opened.append(RunStore(tmp_path / "run", fence=2))

    monkeypatch.setattr(fencing, "fence_run", overtaken)
    assert code(RunStore, tmp_path / "run", time.time, 1) == "E-LEASE"
    (second,) = opened
    assert second.memory_dir.is_dir()
    second.close()


def test_a_takeover_copies_a_large_journal_in_pieces(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", fence=1) as made:
        made.create("run", "name", {}, {})
    journal = tmp_path / "run" / "journal"
    written = bytes(range(256)) * 2**16
    (journal / "round-000000.1.log").write_bytes(written)
    tracemalloc.start()
    try:
        fencing._take_journals(journal, 2)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(written) / 4
    own = journal / "round-000000.2.log"
    assert own.read_bytes() == written
    assert own.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in journal.iterdir()] == [own.name]


def test_a_run_that_another_server_opened_takes_nothing_from_the_one_before(tmp_path: Path) -> None:
    first = RunStore(tmp_path / "run", fence=1)
    first.create("run", "name", {}, {})
    (tmp_path / "run" / "journal" / "round-000000.1.log").write_bytes(b"written so far")
    second = RunStore(tmp_path / "run", fence=2)
    assert [path.name for path in (tmp_path / "run" / "journal").glob("*.log")] == ["round-000000.2.log"]
    assert code(first.renew, {"by": 1}) == "E-LEASE"
    assert code(first.beacon.save, b"") == "E-LEASE"
    assert code(RunStore, tmp_path / "run", time.time, 1) == "E-LEASE"
    assert code(RunStore, tmp_path / "run") == "E-RUN-EXISTS"
    second.renew({"by": 2})
    run = second.run()
    assert run is not None
    assert run["facts"] == {"by": 2}
    second.close()
    first.close()
