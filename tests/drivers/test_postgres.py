"""Servers that share a PostgreSQL database: the coordinator's lease, outages, and values that it cannot hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import databases
import pytest
import sqlalchemy as sa
from served import code

from edgewise.drivers.fleet import backup, mailboxes
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.lease import LEASE_S
from edgewise.drivers.fleet.tables import LEASES, ROUNDS

pytestmark = pytest.mark.slow


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Database]]:
    """Open one more server's connection to the same database."""
    url, servers = databases.new_url(), list[Database]()

    def another() -> Database:
        servers.append(Database(tmp_path, url=url))
        return servers[-1]

    yield another
    for server in servers:
        server.close()


def rounds(database: Database) -> list[int]:
    with database.read() as c:
        return [row.round for row in c.execute(sa.select(ROUNDS.c.round).order_by(ROUNDS.c.round))]


def open_round(database: Database, round: int, fenced: bool = False) -> str:
    return code(lambda: database.write(lambda c: mailboxes.open_round(c, "r", round), fenced))


def stand_still(database: Database) -> threading.Event:
    """Stop a server's writer as a stopped process does, until the event is set."""
    stopped, goes_on = threading.Event(), threading.Event()

    def wait(c: sa.Connection) -> None:
        stopped.set()
        c.rollback()
        goes_on.wait(30.0)

    database.submit(wait)
    stopped.wait(30.0)
    return goes_on


def test_all_servers_write_and_one_coordinates(opened: Callable[[], Database]) -> None:
    first, second = opened(), opened()
    assert first.coordinate()
    assert not second.coordinate()
    assert [open_round(first, 0), open_round(second, 1)] == ["", ""]
    assert [open_round(first, 2, fenced=True), open_round(second, 3, fenced=True)] == ["", "E-LEASE"]
    assert rounds(first) == rounds(second) == [0, 1, 2]
    first.close()
    assert second.coordinate()
    assert open_round(second, 3, fenced=True) == ""


def test_a_coordinator_that_stood_still_commits_nothing_more(opened: Callable[[], Database]) -> None:
    first, second = opened(), opened()
    assert first.coordinate()
    goes_on = stand_still(first)
    until = time.monotonic() + LEASE_S + 10.0
    while not second.coordinate() and time.monotonic() < until:
        time.sleep(0.1)
    late = first.submit(lambda c: mailboxes.open_round(c, "r", 7), fenced=True)
    goes_on.set()
    assert code(late.result) == "E-LEASE"
    assert not first.coordinate()
    assert [open_round(first, 0), open_round(second, 1, fenced=True)] == ["", ""]
    assert code(first.write, first.fence) == "E-LEASE"
    assert rounds(second) == [0, 1]


def test_a_lease_holds_from_its_commit_on(opened: Callable[[], Database], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose session ends before the commit has no lease, and no two servers have one number."""
    first, second = opened(), opened()
    take = first._lease.take_free

    def interrupted(c: sa.Connection) -> int | None:
        number = take(c)
        databases.end_sessions()
        return number

    with monkeypatch.context() as lost:
        lost.setattr(first._lease, "take_free", interrupted)
        assert code(first.coordinate) == "E-DATABASE"
    assert not first.leads
    code(second.coordinate)  # finds its broken connection
    assert second.coordinate()
    assert not first.coordinate()
    assert [open_round(first, 0, fenced=True), open_round(second, 1, fenced=True)] == ["E-LEASE", ""]


def test_leases_count_on_in_a_database_that_was_restored(opened: Callable[[], Database]) -> None:
    first = opened()
    for _ in range(3):
        assert first.coordinate()
        number = first.number
        first.write(lambda c: c.execute(LEASES.delete().where(LEASES.c.name == "writer")))
        assert open_round(first, 0, fenced=True) == "E-LEASE"
    second = opened()
    assert second.coordinate()
    assert second.number == number + 1 == 4


def test_changes_of_all_servers_take_turns(opened: Callable[[], Database]) -> None:
    """Each sees what the others did before it, so that a count has no gaps and no doubles."""
    servers = [opened(), opened()]

    def next_round(c: sa.Connection) -> int:
        known = c.execute(sa.select(sa.func.count()).select_from(ROUNDS)).scalar_one()
        mailboxes.open_round(c, "r", known)
        return int(known)

    futures = [server.submit(next_round) for _ in range(40) for server in servers]
    assert sorted(f.result() for f in futures) == list(range(80))


@pytest.mark.parametrize(
    "outage", [databases.end_sessions, pytest.param(databases.restart, marks=pytest.mark.long(sample=0))]
)
def test_an_outage_of_the_database_takes_back_what_was_under_way(
    opened: Callable[[], Database], outage: Callable[[], None]
) -> None:
    server = opened()
    assert open_round(server, 0) == ""

    def interrupted(c: sa.Connection) -> None:
        mailboxes.open_round(c, "r", 1)
        outage()
        mailboxes.open_round(c, "r", 2)

    assert code(server.write, interrupted) == "E-DATABASE"
    assert rounds(server) == [0]
    assert open_round(server, 3) == ""
    assert server.fault() is None


def test_a_value_that_it_cannot_hold_is_refused_alone(opened: Callable[[], Database]) -> None:
    server = opened()
    both = [server.submit(lambda c, run=run: mailboxes.open_round(c, run, 0)) for run in ("nul\0", "good")]  # type: ignore[misc]
    assert [code(one.result) for one in both] == ["E-REQUEST", ""]
    with server.read() as c:
        assert not mailboxes.arrivals(c, "good", 0)

    def ask() -> None:
        with server.read() as c:
            mailboxes.arrivals(c, "nul\0", 0)

    assert code(ask) == "E-REQUEST"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql:///db?host=/nowhere", "E-DATABASE"),
        ("mysql://localhost/db", "E-REQUEST"),
        ("postgresql://localhost:port/db", "E-REQUEST"),
    ],
)
def test_a_database_that_cannot_be_used_is_named(tmp_path: Path, url: str, wanted: str) -> None:
    assert code(lambda: Database(tmp_path, url=url)) == wanted


def test_a_folder_has_one_fleet(tmp_path: Path) -> None:
    """A server that is started without its URL, or with one too much, does not begin an empty fleet."""
    url = databases.new_url()
    Database(tmp_path / "shared", url=url).close()
    Database(tmp_path / "own").close()
    assert code(lambda: Database(tmp_path / "shared")) == "E-DATABASE"
    assert code(lambda: Database(tmp_path / "own", url=url)) == "E-DATABASE"
    assert code(backup.save, tmp_path / "shared", tmp_path / "copy", 0.0) == "E-DATABASE"


def test_a_folder_belongs_to_one_database(tmp_path: Path) -> None:
    url = databases.new_url()
    Database(tmp_path, url=url).close()
    Database(tmp_path, url=url).close()
    assert code(lambda: Database(tmp_path, url=databases.new_url())) == "E-DATABASE"
