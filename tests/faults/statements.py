"""Compile every SQL statement once for all stores of this process, not once for each: a fifth of a small run's time."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite


def share() -> None:
    """From now on. Dialects, for which statements are compiled, are equal where they are of the same kind."""
    compiled: dict[Any, Any] = {}
    dialect: Any = SQLiteDialect_pysqlite
    dialect.__hash__, dialect.__eq__ = (lambda _: 1), (lambda self, other: type(self) is type(other))

    def use(connection: sa.Connection) -> None:
        connection.execution_options(compiled_cache=compiled)

    sa.event.listen(sa.Engine, "engine_connect", use)
