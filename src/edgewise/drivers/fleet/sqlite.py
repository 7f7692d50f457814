"""SQLite as the database of one server: ``FOLDER/server.db``, with full sync and overwritten deletions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import FOLDER, for_owner

BUSY_MS = 5000  # longest wait for a program that holds the database, such as a shell of SQLite
DISK = ("readonly", "unable to open", "full", "disk I/O")  # words of SQLite's messages about the disk
_OWN = (
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
)  # SQLite's codes for errors of a single statement


class Sqlite:
    """See ``database.Engine``. One process writes, so it needs the lease for everything."""

    shared = False

    def __init__(self, folder: Path) -> None:
        self.path = folder / "server.db"
        self.name = str(folder)
        with self.guard():
            folder.mkdir(FOLDER, parents=True, exist_ok=True)
            with suppress(FileExistsError), open(self.path, "xb", opener=for_owner):
                pass
        self.pool = sa.create_engine(f"sqlite:///{self.path}", hide_parameters=True)
        sa.event.listen(self.pool, "connect", _prepare)
        sa.event.listen(self.pool, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """See Engine."""
        with self.guard(), self.pool.begin() as c:
            yield c

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """See Engine."""
        with self.pool.connect().execution_options(immediate=True) as c, c.begin():
            yield c

    def now_s(self, c: sa.Connection, wall_s: float) -> float:
        """See Engine. One machine has one clock."""
        return wall_s

    def scrub(self) -> None:
        """See Engine. The database overwrites deleted rows (``secure_delete``). This empties its log.

        While a reader still sees an older state, the removal waits for the next call.
        """
        with self.guard(), self.pool.connect() as c:
            c.connection.driver_connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]

    def fails_all(self, c: sa.Connection, e: Exception) -> bool:
        """See Engine."""
        code: int | None = getattr(getattr(e, "orig", e), "sqlite_errorcode", None)  # its low byte is the main code
        ended = not c.connection.driver_connection.in_transaction  # type: ignore[union-attr]
        return ended or (code is not None and code & 0xFF not in _OWN)

    def of_one(self, e: Exception) -> Exception:
        """See Engine."""
        return e

    @contextmanager
    def guard(self) -> Iterator[None]:
        """See Engine. Raises StoreError: E-DISK, E-CHECKPOINT."""
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


def _reason(e: BaseException) -> str:
    """Return SQLite's first message.

    On a full disk it ends the whole transaction, and the savepoint's end fails after it.
    """
    error, context = e, e.__context__
    while context is not None:
        error, context = (context if isinstance(context, sa.exc.DatabaseError) else error), context.__context__
    return str(getattr(error, "orig", error))


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None  # ``_begin`` begins transactions
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "secure_delete=ON", f"busy_timeout={BUSY_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(c: sa.Connection) -> None:
    c.exec_driver_sql("BEGIN IMMEDIATE" if c.get_execution_options().get("immediate") else "BEGIN")
