"""The database of a server: a single writer that commits waiting changes together, under a lease.

    database = Database(folder)                                   # SQLite in the folder
    database = Database(folder, url="postgresql://...")           # shared by any number of servers
    number = database.write(lambda c: mailboxes.post(c, ...))     # durable when this returns

A change is a function of a connection. The writer's thread runs all waiting changes in one transaction, each in its own
savepoint. So a change that raises undoes only itself, whatever it raises. A failing disk or database fails all of them.
Callers are answered after the commit, so an acknowledged change is durable. Reads see the last commit and never wait.

Each transaction checks the lease (``lease``). So a server that was stopped while another took over cannot write any
more: its changes fail with E-LEASE.

SQLite: the lease keeps a second server off the database, and all changes need it. PostgreSQL: each server writes what
devices and operators send. The lease is for the coordinator, which plays the runs (``coordinate``), and only changes
with ``fenced=True`` need it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import sqlalchemy as sa

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.fleet import shared_folder
from edgewise.drivers.fleet.lease import LEASE_S, RENEW_S, Lease, overtaken
from edgewise.drivers.fleet.postgres import PREFIXES, Postgres
from edgewise.drivers.fleet.sqlite import Sqlite

if TYPE_CHECKING:
    from alembic.config import Config

T = TypeVar("T")
Change = Callable[[sa.Connection], Any]
TOGETHER = 256  # the largest number of changes in one transaction
_MIGRATIONS = Path(__file__).parent / "migrations"
_VERSION = sa.text("SELECT version_num FROM alembic_version")


class Engine(Protocol):
    """Port to the kind of a database.

    Attributes:
        shared: other servers write too.
        name: the database, as errors name it.
        path: its file; empty for a database without.
        pool: its connections.
    """

    shared: bool
    name: str
    path: Path
    pool: sa.Engine

    def reading(self) -> AbstractContextManager[sa.Connection]:
        """Open a connection to the last commit. It does not change while it is open."""

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """Begin a transaction that sees all earlier changes, and during which nobody else changes anything."""

    def now_s(self, c: sa.Connection, wall_s: float) -> float:
        """Return the time by which leases end; ``wall_s``: this machine's."""

    def scrub(self) -> None:
        """Remove deleted rows from the disk too, as far as the database can."""

    def fails_all(self, c: sa.Connection, e: Exception) -> bool:
        """Return whether an error fails the whole transaction, as errors of the disk do, and not one change alone."""

    def of_one(self, e: Exception) -> Exception:
        """Return the error of a change that failed alone, for its caller."""

    def guard(self) -> AbstractContextManager[None]:
        """Turn the database's errors into errors of edgewise."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A change and its caller's future. ``fenced``: it needs the lease."""

    change: Change
    future: Future[Any]
    fenced: bool


def engine(folder: Path, url: str) -> Engine:
    """Choose the kind of a database: SQLite in the folder without a URL, PostgreSQL by its URL.

    A folder belongs to one kind: its fleet would be unknown to the other.

    Raises:
        TransportError: E-REQUEST, E-DEPENDENCY.
        StoreError: E-DATABASE where the folder has a fleet in the other kind.
    """
    if not url:
        if (folder / shared_folder.ELSEWHERE).exists():
            what = f"the servers of {folder} have their fleet in PostgreSQL."
            raise StoreError("E-DATABASE", what, "give its URL (--database, or EDGEWISE_DATABASE).")
        return Sqlite(folder)
    if (folder / "server.db").exists():
        what = f"the server of {folder} has its fleet in server.db, which a database by URL does not know."
        raise StoreError("E-DATABASE", what, "leave out --database, or name another folder.")
    if not url.startswith(PREFIXES):
        what = f"{url.partition(':')[0]:.40} is no database that edgewise knows."
        raise TransportError("E-REQUEST", what, "write postgresql://USER@HOST:PORT/DATABASE, or leave it out.")
    return Postgres(url)


class Database:
    """The database of the server in ``folder``, created or migrated when opened.

    On SQLite it holds the lease until ``close``. On PostgreSQL it holds the lease from a ``coordinate`` that succeeds.

    Args:
        folder: the server's folder.
        now_s: wall clock, seconds since 1970.
        wait_s: longest wait for the lease of a server that may have died; on SQLite only.
        url: the database; empty: SQLite in the folder.
    Raises:
        StoreError: E-LEASE where another server holds the lease of an SQLite database. E-DISK, E-CHECKPOINT where
            SQLite cannot work. E-DATABASE where PostgreSQL cannot.
        TransportError: E-REQUEST, E-DEPENDENCY for a URL that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        now_s: Callable[[], float] = time.time,
        wait_s: float = LEASE_S + RENEW_S,
        url: str = "",
    ) -> None:
        self._engine, self._folder, self._now_s = engine(folder, url), folder, now_s
        self.path, self.shared = self._engine.path, self._engine.shared
        self._lease = Lease(now_s, self._engine.now_s, self._next_number)
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._fault: str | None = None
        with self._engine.guard():
            if self.shared:
                with self._engine.writing() as c:
                    self._migrate(c)
                    shared_folder.join_shared_folder(folder, c)
            else:
                self._take_lease(wait_s)
        self._thread = threading.Thread(target=self._run, name="edgewise-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def now_s(self) -> float:
        """Return the time of the server's clock."""
        return self._now_s()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection to the last commit. It does not change while it is open."""
        with self._engine.reading() as c:
            yield c

    def submit(self, change: Callable[[sa.Connection], T], fenced: bool = False) -> Future[T]:
        """Hand a change to the writer.

        The future is done when the change is durable, or fails with the error for which all of the change was undone.

        Args:
            fenced: the change is the coordinator's. It fails with E-LEASE where another server has the lease.
        """
        future: Future[T] = Future()
        if self._closed.is_set():
            future.set_exception(_closing())
        else:
            self._waiting.put(_Waiting(change, future, fenced))
        return future

    def write(self, change: Callable[[sa.Connection], T], fenced: bool = False) -> T:
        """Submit a change and wait until it is durable."""
        return self.submit(change, fenced).result()

    def scrub(self) -> None:
        """Remove deleted rows from the disk too, as far as the database can."""
        self._engine.scrub()

    def close(self) -> None:
        """Commit the waiting changes and give the lease back."""
        if not self._closed.is_set():
            self._closed.set()
            self._waiting.put(None)
            self._thread.join()
            self._fail_what_waits()
            with suppress(StoreError, TransportError), self._engine.guard(), self._engine.writing() as c:
                self._lease.give_back(c)
        self._engine.pool.dispose()

    def fault(self) -> str | None:
        """The reason why the writer's last commit failed. None while it can commit."""
        return self._fault

    def lease_left_s(self) -> float:
        """Return the seconds for which this server has the lease. 0 without it, and where the writer has stalled or is
        ending.
        """
        return self._lease.left_s() if self._thread.is_alive() and not self._closed.is_set() else 0.0

    def _fail_what_waits(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (item := self._waiting.get_nowait()) and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(_closing())

    # -- the lease -----------------------------------------------------------------------------------------------

    def coordinate(self) -> bool:
        """Take the lease where it is free, or keep it. Return whether this server has it.

        Raises:
            StoreError: E-DATABASE, E-DISK.
        """
        if not self.number and not self._closed.is_set():
            self._lease.hold(self.write(self._lease.take_free))
        return self.leads

    @property
    def number(self) -> int:
        """The number of this server's lease. 0 where it has none, or knows that another server took over."""
        return self._lease.number

    @property
    def leads(self) -> bool:
        """True if this server plays the runs, as far as it knows. Its changes are checked when they are made."""
        return not self.shared or self.number > 0

    def fence(self, c: sa.Connection) -> None:
        """Refuse a transaction of another writer of the same database whose server has lost the lease.

        The lease cannot change hands until the transaction has ended. Raises StoreError(E-LEASE).
        """
        self._lease.fence(c)

    def _next_number(self, last: int) -> int:
        return shared_folder.next_lease_number(self._folder, last) if self.shared else last + 1

    def _migrate(self, c: sa.Connection) -> None:
        if sa.inspect(c).has_table("alembic_version") and c.execute(_VERSION).scalars().all() == [database_version()]:
            return  # without alembic, whose import would cost a tenth of a server's start
        from alembic import command

        config = _config()
        config.attributes.update(connection=c, folder=self._folder)
        command.upgrade(config, "head")

    def _take_lease(self, wait_s: float) -> None:
        """Migrate and take the lease, in one transaction."""
        give_up = time.monotonic() + wait_s
        while True:
            taken = None
            with self._engine.writing() as c:
                if self._lease.is_free(c):
                    self._migrate(c)
                    taken = self._lease.take_free(c)
            if taken is not None:
                return self._lease.hold(taken)
            if time.monotonic() >= give_up:
                what = f"another server is working in {self._engine.name}."
                raise StoreError("E-LEASE", what, "stop it, or name another folder.")
            time.sleep(0.1)

    # -- the writer ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        last = False
        while not last:
            batch: list[_Waiting] = []
            with suppress(queue.Empty):
                item = self._waiting.get(timeout=RENEW_S)
                while item is not None and len(batch) < TOGETHER:
                    batch.append(item)
                    item = self._waiting.get_nowait()
                if item is None:
                    last = True
                else:
                    batch.append(item)
            self._commit(batch)

    def _commit(self, batch: list[_Waiting]) -> None:
        # Leave out the changes of callers that cancelled.
        batch = [item for item in batch if item.future.set_running_or_notify_cancel()]
        results: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._engine.guard(), self._engine.writing() as c:
                lost = self._lost(c)
                for item in batch:
                    try:
                        if item.fenced and lost is not None:
                            raise lost
                        with c.begin_nested():
                            value = item.change(c)
                        results.append((item.future, value, None))  # after the savepoint: a change has one result
                    except Exception as e:  # boundary: an error of one change must not fail the others
                        if self._engine.fails_all(c, e):
                            raise
                        results.append((item.future, None, self._engine.of_one(e)))
            self._fault = None
            self._lease.committed()
        except Exception as e:  # boundary: the writer continues, and the callers get the error
            results, self._fault = [(item.future, None, e) for item in batch], str(e)
        for future, value, error in results:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    def _lost(self, c: sa.Connection) -> StoreError | None:
        """Check the lease. Where all changes need it, its loss fails them all; otherwise return the error."""
        if self.shared and not self.number:
            return overtaken()
        try:
            self._lease.check(c)
        except StoreError as e:
            if not self.shared:
                raise
            self._lease.number = 0
            return e
        return None


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def database_version() -> str:
    """Return the version of the tables in this version of edgewise: the number of the last migration."""
    return max(path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]


def _closing() -> StoreError:
    return StoreError("E-LEASE", "this server is shutting down.", "try again when it is back.")
