"""The command ``edgewise bench reproduce``: tables of articles, played again at a small scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json, Quiet

if TYPE_CHECKING:
    from rich.console import Console


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Tables, e.g. T3, or all.", show_default=False)
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the tables and play none.")] = False,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Seeds of each row, from 0.")] = 3,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Other rounds than the table's own.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of cells and results.")] = Path("reproduced"),
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Play tables of articles with the text that ships.

    Writes OUT/NAME.json and OUT/NAME.md, with the published figures and whether the order of methods agrees. Started
    again with the same folder, it plays only what is missing.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("bench reproduce", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from rich.console import Console

        from edgewise.apps.bench import cells, results, tables
        from edgewise.apps.terminal import sessions
        from edgewise.drivers.storage.files import write_durably

        if listed:
            if not as_json:
                _show_list(Console())
            return {"tables": _list_of_tables()}
        wanted = tables.chosen_tables(tuple(names or ()))
        planned = [cells.table_cells(table, out, range(seeds), rounds) for table in wanted]  # checks all first
        cells.claim_folders(out, wanted)
        found = []
        with sessions.interrupts():
            for table, each in zip(wanted, planned, strict=True):
                figures = []
                for number, cell in enumerate(cells.play_cells(table, each)):
                    figures.append(cell)
                    if not (as_json or quiet):
                        at = f"{table.name}  {number + 1} of {len(each)}"
                        typer.echo(f"{at}  {cell['row']}, seed {cell['seed']}", err=True)
                one = results.build_results(table, figures, rounds)
                write_durably(out / f"{table.name}.json", (json.dumps(one, indent=1) + "\n").encode())
                write_durably(out / f"{table.name}.md", results.markdown(table, one).encode())
                if not as_json:
                    results.show_results(Console(), table, one)
                found.append(one)
        return {"out": str(out), "tables": found}

    raise typer.Exit(session.run(body))


def _list_of_tables() -> list[dict[str, Any]]:
    """List all tables in the order of their numbers, with the command that measures each."""
    from edgewise.apps.bench import tables

    found = [
        {"name": t.name, "title": t.title, "command": f"edgewise bench reproduce {t.name}", "minutes": t.minutes}
        for t in tables.TABLES
    ]
    found += [
        {"name": t.name, "title": t.title, "command": t.command, "minutes": None} for t in tables.MEASURED_ELSEWHERE
    ]
    found += [
        {"name": name, "title": why, "command": None, "minutes": None} for name, why in tables.NOT_MEASURED.items()
    ]
    return sorted(found, key=lambda one: int(str(one["name"])[1:]))


def _show_list(console: Console) -> None:
    """Print all tables."""
    for one in _list_of_tables():
        minutes = f", about {one['minutes']} minutes of one core" if one["minutes"] else ""
        console.print(f"{one['name']:4} {one['title']}{minutes}", highlight=False)
        if one["command"]:
            console.print(f"     {one['command']}", highlight=False, soft_wrap=True)
