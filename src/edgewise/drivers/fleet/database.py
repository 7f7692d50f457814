"""The database of a server: SQLite with a single writer, which commits waiting changes together and holds a lease.

    database = Database(folder)
    number = database.write(lambda c: mailboxes.post(c, ...))     # durable when this returns

A change is a function of a connection. The writer's thread runs all waiting changes in one transaction, each in its own
savepoint. So a change that raises undoes only itself, whatever it raises. A failing disk or database fails all of them.
Callers are answered after the commit, so an acknowledged change is durable (WAL, full sync). Reads see the last commit
and never wait.

The lease keeps a second server off the same database. It names its holder and a number that grows with each holder.
Every transaction checks that number (a fencing token). So a server that was stopped while another took over cannot
write any more: its changes fail with E-LEASE.
"""

from __future__ import annotations

import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from edgewise.core.errors import StoreError
from edgewise.drivers.fleet.tables import LEASES
from edgewise.drivers.storage.files import FOLDER, for_owner

T = TypeVar("T")
Change = Callable[[sa.Connection], Any]
LEASE_S, RENEW_S = 2.0, 0.5
BUSY_MS = 5000  # longest wait for a program that holds the database, such as a shell of SQLite
TOGETHER = 256  # the largest number of changes in one transaction
DISK = ("readonly", "unable to open", "full", "disk I/O")  # words of SQLite's messages about the disk
_WRITER = "writer"
_OWN = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)  # SQLite's codes for errors of a single statement
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """The database in ``folder``, created or migrated when opened. Holds the writer's lease until ``close``.

    Args:
        folder: the server's folder.
        now_s: wall clock, seconds since 1970.
        wait_s: longest wait for the lease of a server that may have died.
    Raises:
        StoreError: E-LEASE where another server holds the lease; E-DISK, E-CHECKPOINT where SQLite cannot work.
    """

    def __init__(self, folder: Path, now_s: Callable[[], float] = time.time, wait_s: float = LEASE_S + RENEW_S) -> None:
        self.path, self._now_s = folder / "server.db", now_s
        self._holder, self._number = secrets.token_hex(8), 0
        self._waiting: queue.SimpleQueue[tuple[Change, Future[Any]] | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._renewed_s, self._until_s, self._fault = -1.0, now_s() + LEASE_S, ""
        with self._guard():
            folder.mkdir(FOLDER, parents=True, exist_ok=True)
            with suppress(FileExistsError), open(self.path, "xb", opener=for_owner):
                pass
            self._engine = sa.create_engine(f"sqlite:///{self.path}", hide_parameters=True)
            sa.event.listen(self._engine, "connect", _prepare)
            sa.event.listen(self._engine, "begin", _begin)
            self._take_lease(wait_s)
        self._thread = threading.Thread(target=self._run, name="edgewise-writer", daemon=True)
        self._thread.start()

    def now_s(self) -> float:
        """Return the time of the server's clock."""
        return self._now_s()

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection to the last commit. It does not change while it is open."""
        with self._guard(), self._engine.begin() as c:
            yield c

    def submit(self, change: Callable[[sa.Connection], T]) -> Future[T]:
        """Hand a change to the writer.

        The future is done when the change is durable, or fails with the error for which all of the change was undone.
        """
        future: Future[T] = Future()
        if self._closed.is_set():
            future.set_exception(_closing())
        else:
            self._waiting.put((change, future))
        return future

    def write(self, change: Callable[[sa.Connection], T]) -> T:
        """Submit a change and wait until it is durable."""
        return self.submit(change).result()

    def scrub(self) -> None:
        """Remove deleted rows from the write-ahead log too. The database itself overwrites them (``secure_delete``).

        While a reader still sees an older state, the removal waits for the next call.
        """
        with self._guard(), self._engine.connect() as c:
            c.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]

    def close(self) -> None:
        """Commit the waiting changes and give the lease back."""
        if not self._closed.is_set():
            self._closed.set()
            self._waiting.put(None)
            self._thread.join()
            self._fail_what_waits()
            with suppress(StoreError), self._guard(), self._writing() as c:
                own_lease = (LEASES.c.name == _WRITER) & (LEASES.c.number == self._number)
                c.execute(LEASES.update().where(own_lease).values(until_s=0.0))
        self._engine.dispose()

    def fault(self) -> str:
        """The reason why the writer's last commit failed; empty while it can commit."""
        return self._fault

    def lease_left_s(self) -> float:
        """Return the seconds for which other servers leave this database alone; 0 where the writer has stalled or is
        ending.
        """
        left_s = self._until_s - self._now_s()
        return left_s if self._thread.is_alive() and not self._closed.is_set() and left_s > 0.0 else 0.0

    def _fail_what_waits(self) -> None:
        with suppress(queue.Empty):
            while True:
                if (item := self._waiting.get_nowait()) is not None and item[1].set_running_or_notify_cancel():
                    item[1].set_exception(_closing())

    # -- the lease -----------------------------------------------------------------------------------------------

    def _take_lease(self, wait_s: float) -> None:
        """Migrate and take the lease, in one transaction."""
        give_up = time.monotonic() + wait_s
        while True:
            with self._writing() as c:
                config = _config()
                config.attributes["connection"] = c
                if not sa.inspect(c).has_table("leases") or not (row := self._lease(c)) or row.until_s <= self._now_s():
                    command.upgrade(config, "head")
                    self._number = (self._lease(c).number if self._lease(c) else 0) + 1
                    c.execute(LEASES.delete().where(LEASES.c.name == _WRITER))
                    until_s = self._now_s() + LEASE_S
                    c.execute(
                        LEASES.insert().values(name=_WRITER, holder=self._holder, number=self._number, until_s=until_s)
                    )
                    return
            if time.monotonic() >= give_up:
                what = f"another server is working in {self.path.parent}."
                raise StoreError("E-LEASE", what, "stop it, or name another folder.")
            time.sleep(0.1)

    def _lease(self, c: sa.Connection) -> Any:
        return c.execute(sa.select(LEASES).where(LEASES.c.name == _WRITER)).first()

    def _check_lease(self, c: sa.Connection) -> None:
        now = self._now_s()
        row = self._lease(c)
        if row is None or row.number != self._number:
            raise StoreError(
                "E-LEASE", "another server has taken over this database.", "stop this server. The other one continues."
            )
        if not 0.0 <= now - self._renewed_s < RENEW_S:
            c.execute(LEASES.update().where(LEASES.c.name == _WRITER).values(until_s=now + LEASE_S))
            self._renewed_s = now

    # -- the writer ----------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        with self._engine.connect().execution_options(immediate=True) as c, c.begin():
            yield c

    def _run(self) -> None:
        last = False
        while not last:
            batch: list[tuple[Change, Future[Any]]] = []
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

    def _commit(self, batch: list[tuple[Change, Future[Any]]]) -> None:
        # Leave out the changes of callers that cancelled.
        batch = [item for item in batch if item[1].set_running_or_notify_cancel()]
        results: list[tuple[Future[Any], Any, BaseException | None]] = []
        try:
            with self._guard(), self._writing() as c:
                self._check_lease(c)
                for change, future in batch:
                    try:
                        with c.begin_nested():
                            value = change(c)
                        results.append((future, value, None))  # after the savepoint: a change has one result
                    except Exception as e:  # boundary: an error of one change must not fail the others
                        if _of_all(c, e):
                            raise
                        results.append((future, None, e))
            self._fault, self._until_s = "", self._renewed_s + LEASE_S
        except Exception as e:  # boundary: the writer continues, and the callers get the error
            results, self._fault = [(future, None, e) for _, future in batch], str(e)
        for future, value, error in results:
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DatabaseError, sqlite3.Error, OSError) as e:
            reason = _reason(e)
            if "locked" in reason:
                fix = "end the other program that holds it. Work goes on by itself then."
                raise StoreError("E-DISK", f"{self.path}: {reason}.", fix) from None
            if any(words in reason for words in DISK) or isinstance(e, OSError):
                raise StoreError("E-DISK", f"{self.path}: {reason}.", "free space or give write permission.") from None
            raise StoreError("E-CHECKPOINT", f"{self.path}: {reason}.", "restore the folder from a backup.") from None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


def head() -> str:
    """Return the version of the tables in this version of edgewise."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def _of_all(c: sa.Connection, e: Exception) -> bool:
    """Return whether an error fails the whole transaction, as errors of the disk do, and not one change alone."""
    code: int | None = getattr(getattr(e, "orig", e), "sqlite_errorcode", None)  # the low byte is SQLite's main code
    return not c.connection.driver_connection.in_transaction or (code is not None and code & 0xFF not in _OWN)  # type: ignore[union-attr]


def _reason(e: BaseException) -> str:
    """Return SQLite's first message.

    On a full disk it ends the whole transaction, and the savepoint's end fails after it.
    """
    error, context = e, e.__context__
    while context is not None:
        error, context = (context if isinstance(context, sa.exc.DatabaseError) else error), context.__context__
    return str(getattr(error, "orig", error))


def _closing() -> StoreError:
    return StoreError("E-LEASE", "this server is shutting down.", "try again when it is back.")


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # ``_begin`` begins transactions
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", f"busy_timeout={BUSY_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(c: sa.Connection) -> None:
    c.exec_driver_sql("BEGIN IMMEDIATE" if c.get_execution_options().get("immediate") else "BEGIN")
