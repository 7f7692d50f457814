"""PostgreSQL as the database of any number of servers, named by a URL.

Changes take turns: a transaction that writes first takes an advisory lock of the database. So each change sees the
result of all earlier ones, as in SQLite, and numbers of mail are committed in their order. Each server commits many
changes together, and reads take no lock.

The URL may name a password. Nothing here shows it: errors name host and database only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from edgewise.core.errors import StoreError, TransportError

TURN = 0x65646765  # "edge": the advisory lock of changes
CONNECT_S = 5
STATEMENT_S = 30  # a change that takes longer holds up all servers
PREFIXES = ("postgresql://", "postgres://")
_RETURNS = "look at the database server. Work goes on by itself when it is reachable."
_OF_ONE = ("22", "23", "42")  # classes of SQLSTATE for one statement: its data, a constraint, its syntax


class Postgres:
    """See ``database.Engine``. Servers share the database, and the lease is the coordinator's alone.

    Args:
        url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, with the options of libpq.
    Raises:
        TransportError: E-REQUEST for a URL of another form. E-DEPENDENCY without the package psycopg.
    """

    shared = True

    def __init__(self, url: str) -> None:
        self.path = Path()
        try:
            parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
        except (sa.exc.ArgumentError, ValueError):
            what = "the URL of the database cannot be read."
            raise TransportError("E-REQUEST", what, "write postgresql://USER@HOST:PORT/DATABASE.") from None
        place = parsed.host or parsed.query.get("host", "localhost")
        self.name = f"{place}/{parsed.database or ''}"
        try:
            self.pool = sa.create_engine(  # imports psycopg
                parsed,
                hide_parameters=True,
                pool_recycle=600,  # a broken connection fails one call and empties the pool
                pool_size=8,
                connect_args={
                    "connect_timeout": CONNECT_S,
                    "application_name": "edgewise",
                    "options": f"-c statement_timeout={STATEMENT_S}s -c idle_in_transaction_session_timeout=60s"
                    " -c synchronous_commit=on",
                },
            )
        except ModuleNotFoundError:
            what = "a database on PostgreSQL needs the package psycopg."
            raise TransportError("E-DEPENDENCY", what, 'pip install "edgewise[postgres]".') from None
        self._snapshots = self.pool.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """See Engine."""
        with self.guard(), self._snapshots.begin() as c:
            yield c

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """See Engine. Waits for the turn of this server."""
        with self.pool.begin() as c:
            c.execute(sa.select(sa.func.pg_advisory_xact_lock(TURN)))
            yield c

    def now_s(self, c: sa.Connection, wall_s: float) -> float:
        """See Engine. The clock of the database is the same for all servers."""
        return float(c.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())

    def scrub(self) -> None:
        """See Engine. VACUUM frees the places of deleted rows. It does not overwrite them, nor the log."""
        with self.guard(), self.pool.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
            c.execute(sa.text("VACUUM rounds, mail"))

    def fails_all(self, c: sa.Connection, e: Exception) -> bool:
        """See Engine."""
        if not isinstance(e, sa.exc.DBAPIError):
            return c.invalidated or c.closed
        state = getattr(e.orig, "sqlstate", None)
        return e.connection_invalidated or ((state or "00")[:2] not in _OF_ONE and not isinstance(e, sa.exc.DataError))

    def of_one(self, e: Exception) -> Exception:
        """See Engine."""
        return _unstorable() if isinstance(e, sa.exc.DataError) else e

    @contextmanager
    def guard(self) -> Iterator[None]:
        """See Engine. Raises StoreError(E-DATABASE), and TransportError(E-REQUEST) for text that it cannot hold."""
        try:
            yield
        except sa.exc.DataError:
            raise _unstorable() from None
        except sa.exc.DBAPIError as e:
            reason = " ".join(str(e.orig).split())
            raise StoreError("E-DATABASE", f"{self.name}: {reason:.300}.", _RETURNS) from None
        except sa.exc.SQLAlchemyError as e:
            raise StoreError("E-DATABASE", f"{self.name}: {type(e).__name__}.", _RETURNS) from None


def _unstorable() -> TransportError:
    what = "the request has text or a number that the database cannot hold."
    return TransportError("E-REQUEST", what, "send text without NUL, and numbers in their limits.")
