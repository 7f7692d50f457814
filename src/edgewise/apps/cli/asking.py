"""Requests of commands to a server: the connection of an enrolled key, ids, and tables of the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link

PATIENCE_S = 30.0  # An operator waits at the terminal for so long at most.
LIST_BYTES = 2**28  # the largest list that an operator may get, such as the events of a large cohort


def identifier(text: str) -> str:
    """Check that an id can be part of a URL path. Raises TransportError(E-UNKNOWN-ID)."""
    from edgewise.core.errors import TransportError

    if not (text.isalnum() and text.isascii()):
        raise TransportError("E-UNKNOWN-ID", f"{text:.40} is not an id.", "copy the id from `ls`.")
    return text


def table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    """Print rows as a table. A column whose name ends with ``_s`` holds seconds since 1970."""
    import datetime

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:  # An id stays on one line, so that a person can copy it.
        whole = max((len(str(row[column])) for row in rows), default=0) if column in ("id", "run") else None
        table.add_column(column.removesuffix("_s"), min_width=whole, no_wrap=whole is not None)
    for row in rows:
        cells = []
        for column in columns:
            value = row[column]
            if column.endswith("_s"):
                moment = datetime.datetime.fromtimestamp(value, datetime.UTC)
                cells.append(moment.strftime("%Y-%m-%d %H:%M UTC"))
            else:
                cells.append(
                    escape(", ".join(value) if isinstance(value, list) else "" if value is None else str(value))
                )
        table.add_row(*cells)
    Console().print(table)


def ask_server(name: str, home: Path, as_json: bool, debug: bool, ask: Callable[[Link], Mapping[str, Any]]) -> None:
    """Run a command that asks the server of ``home``, and end the process with its status."""
    run_body(name, as_json, debug, lambda: asked_server(home, ask))


def asked_server(home: Path, ask: Callable[[Link], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the answer of the server of ``home``."""
    from edgewise.drivers.http.link import Link

    with Link(home.expanduser(), PATIENCE_S, answer_bytes=LIST_BYTES) as link:
        return ask(link)


def run_body(name: str, as_json: bool, debug: bool, body: Callable[[], Mapping[str, Any]]) -> None:
    """Run a command, and end the process with its status."""
    from edgewise.apps.terminal.sessions import CommandSession

    raise typer.Exit(CommandSession(name, as_json=as_json, debug=debug).run(body))
