"""The writer of a server's database, and how a database of an older version is brought up to date."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, roster
from edgewise.drivers.fleet.database import Database, _config
from edgewise.drivers.fleet.tables import META, PARTICIPANTS, ROUNDS
from edgewise.drivers.http.identity import fingerprint
from edgewise.drivers.storage.blobs import Blobs


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path)
    yield made
    made.close()


def test_the_migrations_make_the_tables(database: Database) -> None:
    with database.read() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True})
        differences = compare_metadata(context, META)
    assert differences == []
    if os.name != "nt":
        assert stat.S_IMODE(database.path.stat().st_mode) == 0o600


def break_the_rules(c: sa.Connection) -> None:
    c.execute(ROUNDS.insert().values(run="good", round=0, key=b""))  # it is there


def give_up(c: sa.Connection) -> None:
    raise TransportError("E-CLOSED", "no.", "no.")


@pytest.mark.parametrize(
    "fault", [give_up, break_the_rules, lambda c: [][0], lambda c: c.execute(sa.text("SELECT no"))]
)
def test_a_change_that_fails_takes_back_itself_alone(
    database: Database, fault: Callable[[sa.Connection], None]
) -> None:
    def fails(c: sa.Connection) -> None:
        mailboxes.open_round(c, "bad", 0)
        fault(c)

    together = threading.Event()
    database.submit(lambda c: together.wait(10.0))
    futures = [database.submit(lambda c, n=n: mailboxes.open_round(c, "good", n)) for n in range(3)]  # type: ignore[misc]
    gone, bad = database.submit(lambda c: mailboxes.open_round(c, "gone", 0)), database.submit(fails)
    last = database.submit(lambda c: mailboxes.open_round(c, "good", 3))
    assert gone.cancel()
    together.set()
    assert len({f.result() for f in futures} | {last.result()}) == 4
    assert isinstance(bad.exception(), TransportError | sa.exc.DBAPIError | IndexError)
    assert database.fault() == ""
    with database.read() as c:
        assert c.execute(sa.select(ROUNDS.c.run, ROUNDS.c.round)).all() == [("good", n) for n in range(4)]


def test_the_devices_of_older_runs_are_those_of_their_rosters(tmp_path: Path) -> None:
    engine, config = sa.create_engine(f"sqlite:///{tmp_path / 'server.db'}"), _config()
    with engine.begin() as older:
        config.attributes["connection"] = older
        command.upgrade(config, "0003")
    engine.dispose()
    keys = [bytes([i]) * 32 for i in range(3)]
    (tmp_path / "blobs").mkdir()
    facts = {"instance": {"roster": Blobs(tmp_path / "blobs").put(roster.dump(keys))}}
    rows = {"here": facts, "gone": {"instance": {"roster": "0" * 64}}, "alone": {"instance": None}}
    with closing(sqlite3.connect(tmp_path / "server.db")) as c:
        for run, said in rows.items():
            raw = json.dumps(said).encode()
            c.execute("INSERT INTO served VALUES (?, '', 'running', '', 1, ?, x'', '{}', '', 0)", (run, raw))
        c.commit()
    database = Database(tmp_path)
    with database.read() as c:
        found = c.execute(sa.select(PARTICIPANTS.c.run, PARTICIPANTS.c.device)).all()
    database.close()
    assert sorted(found) == sorted(("here", fingerprint(key)) for key in keys)
