"""Backups of a server: consistent while it serves, whole or not there, without what a round's end destroys; and what a
restored server refuses."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from kit import ACTIONS, available
from served import RUN, code, contribution, joined, running, send_invitation
from shown_runs import login

from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import StoreError
from edgewise.drivers.fleet import backup, counters, mailboxes, served
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.epoch import EPOCH
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.fleet.tables import MAIL, MEMBERS, ROUNDS
from edgewise.drivers.http.browser import COOKIE
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.checkpoint import Checkpoint
from edgewise.privacy.ledger import LedgerEntry
from edgewise.privacy.spend import gaussian
from edgewise.strategies.base import State

ID = "5e" * 32


def play(folder: Path, rounds: range) -> None:
    """Play rounds of the run ``ID`` in a server's folder: each is charged, then committed."""
    with RunStore(folder / "runs" / ID[:32]) as store:
        if store.run() is None:
            store.create(ID, "test", {}, {})
        for number in rounds:
            if number:
                store.charge(LedgerEntry(number - 1, f"{number}", 0, gaussian(1.0)))
            store.commit(Checkpoint(number, State(np.full(5, number, np.float32), {}, number), 0), ())


def register(server: HttpServer) -> None:
    row = ServedRun(ID, "test", served.RUNNING, None, 9, b"{}", b"", {}, "0" * 32, 0.0)
    server.service.database.write(lambda c: served.add(c, row))


@pytest.mark.slow
def test_a_server_goes_on_from_a_backup_and_its_runs_do_not(tmp_path: Path) -> None:
    old, copy, new = tmp_path / "server", tmp_path / "backup", tmp_path / "again"
    (old / "runs").mkdir(parents=True)
    play(old, range(5))
    with running(tmp_path) as server, joined(server, tmp_path / "home") as device:
        register(server)
        server.token()
        number = send_invitation(server, device.name)
        device.send(RUN, 0, contribution(device.name, b"a frame that the round's end destroys"))
        with server.service.database.read() as c:
            key = mailboxes.round_key(c, RUN, 0)
        with closing(sqlite3.connect(old / "runs" / ID[:32] / "run.db")) as run:
            (journal_key,) = run.execute("SELECT journal_key FROM runs").fetchone()
        backup.save(old, copy, time.time())
        send_invitation(server, device.name, 1)
        device.send(RUN, 1, contribution(device.name, b"after the backup", 1))
        name, port = server.service.identity.name, server.port
    play(old, range(5, 8))
    done = backup.restore(copy, new, time.time() - 5.0)
    assert (done.epoch, done.ended, done.tokens) == (1, (ID,), 1)
    for path in (p for p in copy.rglob("*") if p.is_file()):
        assert not any(secret in path.read_bytes() for secret in (key, journal_key))
        assert b"that the round's end" not in path.read_bytes()
        assert os.name == "nt" or path.stat().st_mode & 0o077 == 0
    with HttpServer(new, port=port) as server, Link(tmp_path / "home", patience_s=10.0) as device:
        assert server.service.identity.name == name, "devices know it"
        assert device.standing()["status"] == "approved"
        assert code(server.hosting.ask, ID, served.RUNNING) == "E-CONFLICT"
        assert send_invitation(server, device.name) > backup.NUMBERS > number, "a number is never given twice"
        assert device.poll(number, 0.0) is not None
        with server.service.database.read() as c:
            assert counters.find(c, device.name).number == 1, "the backup has it"
        device.send(RUN, 0, contribution(device.name, b"and another one"))
        with server.service.database.read() as c:
            assert "E-RESTORED" in (served.find(c, ID).why or "")
    with RunStore(new / "runs" / ID[:32]) as store:
        assert code(store.load) == "E-RESTORED", "three rounds were released since, of which it knows nothing"
        assert len(store.charges()) == 4, "what was known can be read"
        assert store.blob(store.models()[4])[0] == 4.0
    second = backup.restore(_saved(new, tmp_path / "second"), tmp_path / "third", time.time())
    assert second.epoch == 2


def _saved(folder: Path, to: Path) -> Path:
    backup.save(folder, to, time.time())
    return to


@pytest.mark.slow
def test_a_finished_run_is_as_it_was(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        register(server)
    play(tmp_path / "server", range(3))
    with RunStore(tmp_path / "server" / "runs" / ID[:32]) as store:
        store.finish()
    backup.restore(_saved(tmp_path / "server", tmp_path / "copy"), tmp_path / "new", time.time())
    with RunStore(tmp_path / "new" / "runs" / ID[:32]) as store:
        loaded = store.load()
        assert loaded is not None
        assert loaded.next_round == 2


@pytest.mark.slow
def test_a_run_that_is_being_submitted_is_in_no_backup(tmp_path: Path) -> None:
    """Its folder is made before its row. After a restore no submission would remove it."""
    with running(tmp_path):
        pass
    play(tmp_path / "server", range(1))
    backup.restore(_saved(tmp_path / "server", tmp_path / "copy"), tmp_path / "new", time.time())
    assert not list(tmp_path.glob("new/runs/*"))


@pytest.mark.slow
def test_a_restored_server_takes_nothing_that_it_may_have_taken_before(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        joined(server, tmp_path / "home").close()
        admin = joined(server, tmp_path / "admin", "admin")
        session, port = login(server, admin.name), server.port
        admin.close()
    began_s = time.time() - 20.0
    backup.restore(_saved(tmp_path / "server", tmp_path / "copy"), tmp_path / "new", began_s)
    with HttpServer(tmp_path / "new", port=port) as server:
        send = lambda link: code(link.call, "POST", "/v1/tokens", None, b"", "-", None, {})  # noqa: E731
        with Link(tmp_path / "admin", 0.0, lambda: began_s - 1.0) as old, Link(tmp_path / "admin") as fresh:
            assert send(old) == "E-BUSY"
            assert send(fresh) == ""
            assert old.standing()["role"] == "admin", "reading changes nothing"
            answer = fresh._http.get("/dashboard.json", headers={"cookie": f"{COOKIE}={session}"})
            assert answer.json()["code"] == "E-SESSION", "a session may have ended since"


@pytest.mark.slow
def test_a_backup_is_of_one_moment(tmp_path: Path) -> None:
    """Two rows that are written together are in it both or not at all, while they are written all the time."""
    over = threading.Event()
    with running(tmp_path) as server:

        def write() -> None:
            for n in range(100_000):
                if over.is_set():
                    return
                run = ServedRun(f"{n:064d}", "", served.PAUSED, None, 1, bytes(2000), b"", {}, "", 0.0)
                other = ServedRun(f"{n:063d}x", "", served.PAUSED, None, 1, bytes(2000), b"", {}, "", 0.0)
                server.service.database.write(lambda c, a=run, b=other: (served.add(c, a), served.add(c, b)))  # type: ignore[misc]

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for n in range(3):
                backup.save(tmp_path / "server", tmp_path / f"copy{n}", 0.0)
        finally:
            over.set()
            thread.join()
    counts = []
    for n in range(3):
        database = Database(tmp_path / f"copy{n}")
        with database.read() as c:
            runs = [run.run for run in served.listed(c)]
        database.close()
        assert len({run[:63] for run in runs if run.endswith("x")}) * 2 == len(runs)
        counts.append(len(runs))
    assert counts == sorted(counts)


@pytest.mark.slow
def test_a_backup_that_is_not_whole_is_refused_by_name(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        register(server)
    play(tmp_path / "server", range(2))
    copy = _saved(tmp_path / "server", tmp_path / "copy")
    files = [p for p in sorted(copy.rglob("*")) if p.is_file()]
    assert {"server.key", "ca.key", "server.db", backup.MANIFEST, "run.db"} <= {p.name for p in files}
    for path in files:
        raw = path.read_bytes()
        for damaged in (raw[:-1], raw + b" x", None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            with pytest.raises(StoreError, match="E-BACKUP"):
                backup.restore(copy, tmp_path / "new", 0.0)
            assert not (tmp_path / "new").exists()
            path.write_bytes(raw)
    (copy / "more").write_bytes(b"")
    assert code(backup.restore, copy, tmp_path / "new", 0.0) == "E-BACKUP"
    (copy / "more").unlink()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert code(backup.restore, copy, tmp_path / "taken", 0.0) == "E-FOLDER"
    assert code(backup.save, tmp_path / "server", copy, 0.0) == "E-FILE-EXISTS"
    assert code(backup.save, tmp_path / "taken", tmp_path / "no", 0.0) == "E-IDENTITY"
    backup.restore(copy, tmp_path / "new", 0.0)
    assert (tmp_path / "new" / EPOCH).is_file()


WALK = """
import ctypes, json, os, shutil, sys
from pathlib import Path
from edgewise.drivers.fleet import backup
from edgewise.drivers.fleet.backup import check

folder, to, control, action, first, last, step = json.loads(sys.argv[1])
arm = ctypes.CDLL(None).edgewise_arm
arm.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int, ctypes.c_int]
for n in range(first, last, step):
    shutil.rmtree(to, ignore_errors=True)
    Path(control).write_bytes(bytes(1 << 16))
    if (pid := os.fork()) == 0:
        arm(str(Path(to).parent).encode(), control.encode(), n, action, 28, 0)
        status = 7
        try:
            backup.save(Path(folder), Path(to), 1.0)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    whole = Path(to).exists()
    if whole:
        check(Path(to))
    print(json.dumps([n, status, whole, [p.name for p in Path(to).parent.iterdir()]]), flush=True)
    if status == 0:
        break
"""


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.skipif(bool(available()), reason=available())
@pytest.mark.parametrize("action", ["kill_torn", "kill_after", "fail"])
def test_a_backup_that_is_killed_leaves_none_or_a_whole_one(tmp_path: Path, action: str) -> None:
    """SIGKILL, or a full disk, at each of its durable operations; the next backup is as if nothing had been."""
    from long import LONG

    with running(tmp_path) as server:
        register(server)
    play(tmp_path / "server", range(3))
    source = Path(__file__).parents[1] / "faults" / "shim.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", tmp_path / "shim.so", source, "-ldl"], check=True)
    to = tmp_path / "backups" / "copy"
    to.parent.mkdir()
    arguments = [
        str(tmp_path / "server"),
        str(to),
        str(tmp_path / "control"),
        ACTIONS[action],
        1,
        2000,
        1 if LONG else 60,
    ]
    done = subprocess.run(
        [sys.executable, "-c", WALK, json.dumps(arguments)],
        env={**os.environ, "LD_PRELOAD": str(tmp_path / "shim.so")}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 2
    assert found[-1][1:3] == [0, True], "the last one was not disturbed"
    for n, status, whole, names in found[:-1]:
        assert status != 0, n
        assert set(names) <= {"copy", ".copy.partial"}
        assert whole == ("copy" in names), "under its name there is a whole backup, or nothing"
    assert found[-1][3] == ["copy"], "what the killed ones left is gone"
    with HttpServer(tmp_path / "server") as server, server.service.database.read() as c:
        assert c.execute(sa.select(sa.func.count()).select_from(MEMBERS)).scalar() == 0, "the server is unharmed"
        assert not c.execute(sa.select(MAIL)).all()
        assert not c.execute(sa.select(ROUNDS)).all()
