"""The differences between SQLite and PostgreSQL that statements of edgewise need. Everything else is SQLAlchemy Core.

    c.execute(upsert(c, TABLE).values(...).on_conflict_do_nothing())

Drivers that open databases have their own differences: ``fleet.sqlite`` and ``fleet.postgres``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # integers beyond 2^31; SQLite's always hold 64 bits


class _Optional(sa.types.TypeDecorator[Any]):
    """A column whose ``STORED`` value says that there is none. Python has None for it, in rows and in statements.

    The bytes in a database stay as they were, so that older databases are read without a change, and digests over
    their rows hold.
    """

    cache_ok = True
    STORED: Any

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the value to store."""
        return self.STORED if value is None else value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        """Return the value of a stored one."""
        return None if value == self.STORED else value


class OptionalText(_Optional):
    """Text or None, which is stored as empty text."""

    impl, STORED, cache_ok = sa.String, "", True


class OptionalDocument(OptionalText):
    """The same for text of any length."""

    impl, cache_ok = sa.Text, True


class OptionalBytes(_Optional):
    """Bytes or None, which is stored as no bytes."""

    impl, STORED, cache_ok = sa.LargeBinary, b"", True


class OptionalNumber(_Optional):
    """An integer from 0 or None, which is stored as -1."""

    impl, STORED, cache_ok = sa.Integer, -1, True


def upsert(c: sa.Connection, table: sa.Table) -> Any:
    """Begin an INSERT with ON CONFLICT in the words of the connection's database."""
    if c.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def larger_in_sql(a: sa.ColumnElement[Any], b: Any) -> sa.ColumnElement[Any]:
    """Return the larger of two values. SQLite calls it MAX and PostgreSQL GREATEST."""
    return sa.case((a > b, a), else_=b)
