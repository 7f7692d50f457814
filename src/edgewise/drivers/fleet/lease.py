"""The lease of a database: one server at a time holds it, under a number that grows with each holder.

    lease = Lease(time.time, engine.now_s, lambda last: last + 1)
    lease.hold(database.write(lease.take_free))       # None: another server has it
    lease.check(c)                                    # in each transaction; E-LEASE where another server took over

The number is a fencing token. A server that was stopped while another took over finds another holder in its next
transaction, which then fails. What is decided in a transaction counts from its commit on, so ``hold`` follows it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.drivers.fleet.tables import LEASES

LEASE_S, RENEW_S = 2.0, 0.5
_WRITER = "writer"


class Lease:
    """One server's view of the lease.

    Args:
        now_s: wall clock of this machine, seconds since 1970.
        database_now_s: the time by which leases end, from a connection and this machine's time.
        next_number: chooses the number of a new lease, above the database's last one. It may raise StoreError(E-DISK).

    Attributes:
        number: the number of this server's lease; 0 where it has none, or knows that another server took over.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        database_now_s: Callable[[sa.Connection, float], float],
        next_number: Callable[[int], int],
    ) -> None:
        self._now_s, self._database_now_s, self._next_number = now_s, database_now_s, next_number
        self._holder, self.number = secrets.token_hex(8), 0
        self._renewed_s, self._until_s = -1.0, now_s() + LEASE_S

    def is_free(self, c: sa.Connection) -> bool:
        """Return whether nobody holds the lease by this machine's clock, in a database that may be without tables."""
        row = _row(c) if sa.inspect(c).has_table(LEASES.name) else None
        return row is None or row.until_s <= self._now_s()

    def take_free(self, c: sa.Connection) -> int | None:
        """Take the lease unless it is another server's. Return its number, which holds from the commit on.

        Whoever has it next has a higher number. It takes another after a commit of its own that it could not see.
        """
        row, now_s = _row(c), self._database_now_s(c, self._now_s())
        if row is not None and row.until_s > now_s and row.holder != self._holder:
            return None
        number = self._next_number(row.number if row else 0)
        c.execute(LEASES.delete().where(LEASES.c.name == _WRITER))
        values = {"holder": self._holder, "number": number, "until_s": now_s + LEASE_S}
        c.execute(LEASES.insert().values(name=_WRITER, **values))
        return number

    def hold(self, number: int | None) -> None:
        """Work under a lease whose transaction is committed. None changes nothing."""
        if number is not None:
            self.number, self._renewed_s, self._until_s = number, self._now_s(), self._now_s() + LEASE_S

    def check(self, c: sa.Connection) -> None:
        """Check the holder and the number, and renew the lease. Raises StoreError(E-LEASE)."""
        row, now_s = _row(c), self._now_s()
        if not self._is_own(row):
            raise overtaken()
        if not 0.0 <= now_s - self._renewed_s < RENEW_S:
            until_s = self._database_now_s(c, now_s) + LEASE_S
            c.execute(LEASES.update().where(LEASES.c.name == _WRITER).values(until_s=until_s))
            self._renewed_s = now_s

    def fence(self, c: sa.Connection) -> None:
        """Check the holder and the number in another writer's transaction, until whose end the lease stays where it is.

        Raises StoreError(E-LEASE).
        """
        row = c.execute(sa.select(LEASES).where(LEASES.c.name == _WRITER).with_for_update(read=True)).first()
        if not self._is_own(row):
            raise overtaken()

    def committed(self) -> None:
        """Count the lease as renewed: a transaction with ``check`` is committed."""
        self._until_s = self._renewed_s + LEASE_S

    def left_s(self) -> float:
        """Return the seconds for which this server has the lease. 0 without it."""
        return max(0.0, self._until_s - self._now_s()) if self.number else 0.0

    def give_back(self, c: sa.Connection) -> None:
        """End the lease now if it is this server's."""
        own_lease = (LEASES.c.name == _WRITER) & (LEASES.c.holder == self._holder)
        c.execute(LEASES.update().where(own_lease).values(until_s=0.0))

    def _is_own(self, row: Any) -> bool:
        """Return whether a row is this server's lease. A number alone would not tell two holders apart."""
        return row is not None and self.number > 0 and (row.holder, row.number) == (self._holder, self.number)


def overtaken() -> StoreError:
    """Return the error of a server that lost the lease."""
    return StoreError(
        "E-LEASE", "another server has taken over this database.", "stop this server. The other one continues."
    )


def _row(c: sa.Connection) -> Any:
    return c.execute(sa.select(LEASES).where(LEASES.c.name == _WRITER)).first()
