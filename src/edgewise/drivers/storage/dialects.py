"""The differences between SQLite and PostgreSQL that statements of edgewise need. Everything else is SQLAlchemy Core.

    c.execute(upsert(c, TABLE).values(...).on_conflict_do_nothing())

Drivers that open databases have their own differences: ``fleet.sqlite`` and ``fleet.postgres``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # integers beyond 2^31; SQLite's always hold 64 bits


def upsert(c: sa.Connection, table: sa.Table) -> Any:
    """Begin an INSERT with ON CONFLICT in the words of the connection's database."""
    if c.dialect.name == "postgresql":
        from sqlalchemy.dialects import postgresql

        return postgresql.insert(table)
    from sqlalchemy.dialects import sqlite

    return sqlite.insert(table)


def larger(a: sa.ColumnElement[Any], b: Any) -> sa.ColumnElement[Any]:
    """Return the larger of two values. SQLite calls it MAX and PostgreSQL GREATEST."""
    return sa.case((a > b, a), else_=b)
