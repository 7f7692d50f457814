"""The command ``edgewise eval``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.cli.use_commands import Base, Device, DeviceHome, MaxTokens, Models, Place, Played, names_of, opened
from edgewise.apps.terminal.options import Debug, Json


def evaluate(
    place: Place,
    on: Annotated[
        Path, typer.Option("--on", help="File with rows (JSON lines, CSV, Parquet) or text.", show_default=False)
    ],
    models: Models = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--column", metavar="KEY=NAME", help="Column of text, prompt, messages, question, ... Repeatable."
        ),
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option("--devices", metavar="NAME", help="Rows of this owner only. Repeatable.")
    ] = None,
    rouge: Annotated[bool, typer.Option("--rouge", help="Generate answers, and compare them by ROUGE-L.")] = False,
    metric: Annotated[
        str, typer.Option("--metric", metavar="MODULE:NAME", help="Your own score of a generated answer.")
    ] = "",
    length: Annotated[
        int | None, typer.Option("--length", min=8, help="Tokens of a block (default: as in training, else 128).")
    ] = None,
    max_tokens: MaxTokens = 128,
    device: Device = "",
    home: DeviceHome = None,
    played: Played = None,
    base: Base = "",
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a trained model on a file.

    Measures perplexity and bits per byte of texts and answers, accuracy of multiple choice by likelihood, and scores of
    generated answers. For all rows and for each owner, of the global model and others (--model).
    """
    from edgewise.apps.terminal.sessions import CommandSession

    extensions = [metric.partition(":")[0]] if metric else None

    def body() -> dict[str, Any]:
        from edgewise.apps.models import evaluating
        from edgewise.apps.runs.extensions import importable
        from edgewise.apps.terminal import sessions
        from edgewise.core.errors import EdgewiseError
        from edgewise.learn.text import evaluation_rows

        named = dict(one.partition("=")[::2] for one in columns or ())
        rows = evaluation_rows.read_evaluation_rows(on, named)
        if devices:
            if missing := sorted(set(devices) - {row.owner for row in rows}):
                raise EdgewiseError("E-USE", f"no row of {on} has the owner {missing[0]!r:.60}.", "check --devices.")
            rows = [row for row in rows if row.owner in devices]
        importable(extensions or (), Path())
        used, _ = opened(place, played, base, device, home, debug)
        names = names_of(models, used)
        wanted = evaluating.EvaluationRequest(length or used.length, rouge, metric or None, max_tokens)
        with sessions.interrupts(), sessions.quiet_screen(None, debug) as screen:
            from edgewise.apps.terminal.progress_bar import steps

            with steps(None if as_json else screen) as step:
                found = evaluating.evaluate_in_use(used, names, rows, wanted, step)
        table = [{"model": m, "device": d, **f} for m, by_device in found.items() for d, f in by_device.items()]
        if csv is not None:
            _write_csv(csv, table)
        if not as_json:
            _show_table(table)
        return {"from": used.title, "on": str(on), "length": wanted.length, "models": found}

    raise typer.Exit(CommandSession("eval", as_json=as_json, debug=debug, extensions=extensions).run(body))


def _table_columns(table: list[dict[str, Any]]) -> list[str]:
    """List the columns of a table's rows."""
    return list(dict.fromkeys(name for row in table for name in row))


def _write_csv(path: Path, table: list[dict[str, Any]]) -> None:
    """Write the table as CSV. Raises StoreError(E-DISK)."""
    import csv

    from edgewise.core.errors import StoreError

    try:
        with path.open("w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, _table_columns(table))
            writer.writeheader()
            writer.writerows(table)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "name another file with --csv.") from None


def _show_table(table: list[dict[str, Any]]) -> None:
    """Print the table on a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    columns = _table_columns(table)
    shown = Table(box=None, pad_edge=False)
    for name in columns:
        shown.add_column(name.replace("_", " "), justify="left" if name in ("model", "device") else "right")
    for row in table:
        shown.add_row(*(escape(_table_cell(row, name)) for name in columns))
    Console().print(shown)


def _table_cell(row: Mapping[str, Any], name: str) -> str:
    """Write a value for a cell of the table."""
    value = row.get(name)
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
