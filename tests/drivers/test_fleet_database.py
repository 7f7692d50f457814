"""The writer of a server's database, and how a database of an older version is brought up to date."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from databases import KINDS, url_of

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, roster, served
from edgewise.drivers.fleet.database import Database, _config, database_version, engine
from edgewise.drivers.fleet.tables import META, PARTICIPANTS, ROUNDS, SERVED
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.storage.blobs import Blobs


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database of each kind."""
    return url_of(request.param)


@pytest.fixture
def database(tmp_path: Path, url: str) -> Iterator[Database]:
    made = Database(tmp_path, url=url)
    yield made
    made.close()


def test_the_migrations_make_the_tables(database: Database) -> None:
    with database.read() as c:
        context = MigrationContext.configure(c, opts={"compare_type": True})
        differences = compare_metadata(context, META)
    assert differences == []
    if os.name != "nt" and not database.shared:
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
    assert database.fault() is None
    with database.read() as c:
        assert c.execute(sa.select(ROUNDS.c.run, ROUNDS.c.round)).all() == [("good", n) for n in range(4)]


def test_the_last_migration_is_the_version_of_the_tables() -> None:
    assert database_version() == ScriptDirectory.from_config(_config()).get_current_head()


@pytest.mark.slow
def test_a_server_that_starts_again_imports_neither_alembic_nor_torch(tmp_path: Path) -> None:
    """Each costs a part of the seconds for which devices wait after a crash."""
    Database(tmp_path).close()
    code = "import sys; from edgewise.apps.server.start import HttpServer; from pathlib import Path;"
    code += (
        "HttpServer(Path(sys.argv[1])).close(); print(*{'alembic', 'torch', 'transformers', 'pandas'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == []


REVISIONS = [str(one.revision) for one in ScriptDirectory.from_config(_config()).walk_revisions()]
KEYS = [bytes([i]) * 32 for i in range(3)]


@pytest.mark.parametrize("revision", [r for r in REVISIONS if r >= "0002"])
def test_a_database_of_an_older_version_is_brought_up_to_date(tmp_path: Path, url: str, revision: str) -> None:
    """Its runs stay. Before 0004 their devices were known by the rosters alone."""
    (tmp_path / "blobs").mkdir()
    facts = {"instance": {"roster": Blobs(tmp_path / "blobs").put(roster.dump(KEYS))}}
    rows = {"here": facts, "gone": {"instance": {"roster": "0" * 64}}, "alone": {"instance": None}}
    older = engine(tmp_path, url)
    with older.writing() as c:
        config = _config()
        config.attributes.update(connection=c, folder=tmp_path)
        command.upgrade(config, revision)
        for run, said in rows.items():
            values = {"name": "", "state": "running", "why": "", "rounds": 1, "facts": json.dumps(said).encode()}
            row = {"run": run, **values, "signature": b"", "kept": "{}", "made_by": "", "made_s": 0.0}
            c.execute(SERVED.insert().values(row))
    older.pool.dispose()
    database = Database(tmp_path, url=url)
    with database.read() as c:
        found = c.execute(sa.select(PARTICIPANTS.c.run, PARTICIPANTS.c.device)).all()
        assert [run.run for run in served.listed(c)] == ["alone", "gone", "here"]
        assert compare_metadata(MigrationContext.configure(c, opts={"compare_type": True}), META) == []
    database.write(lambda c: mailboxes.open_round(c, "here", 0))
    database.close()
    assert sorted(found) == sorted(("here", key_fingerprint(key)) for key in KEYS if revision < "0004")


def test_a_nameless_device_is_in_no_run(tmp_path: Path) -> None:
    """Who may read every run says so by None. An empty name gets what is published to everybody."""
    with Database(tmp_path) as database:
        database.write(lambda c: mailboxes.publish(c, "r", {"a" * 64: 1}))
        database.write(lambda c: mailboxes.admit(c, "r", ["d"]))
        with database.read() as c:
            allowed = {device: mailboxes.offered(c, "a" * 64, device) for device in (None, "d", "e", "")}
    assert allowed == {None: True, "d": True, "e": False, "": False}
