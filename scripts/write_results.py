#!/usr/bin/env python3
"""Write ``docs/results.md`` from the figures that are kept in ``benchmarks/results/``.

    .venv/bin/python scripts/write_results.py

To renew the figures of a table: ``edgewise bench reproduce T3 --out DIR``, then copy ``DIR/T3.json`` into that folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgewise.apps.bench import results, tables

ROOT = Path(__file__).resolve().parent.parent
KEPT, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "results.md"
HEAD = """\
# Published tables, repeated

<!-- Written by scripts/write_results.py; do not edit by hand. -->

Tables that articles of the field are judged by, beside what edgewise measures with a small model and a small corpus.
The figures cannot be those of the articles, whose models and data are larger. The **order** of methods can agree. This
page says where it does, and where it does not.

Repeat the tables that need nothing but the package in an afternoon on one core:

    edgewise bench reproduce all

The command plays each method with three seeds, and writes the figures as JSON and Markdown. Started again, it goes on
where it was stopped. `edgewise bench reproduce --list` shows all tables. On another kind of processor the last digits
differ. The kept figures of each seed are in `benchmarks/results/`, with the digests of recipe and model.
"""


def kept(name: str) -> dict[str, Any] | None:
    """The kept figures of a table; None where it was not played."""
    path = KEPT / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def page() -> str:
    """The whole page."""
    played = {table.name: table for table in tables.TABLES}
    elsewhere = {table.name: table for table in tables.MEASURED_ELSEWHERE}
    names = sorted([*played, *elsewhere, *tables.NOT_MEASURED], key=lambda name: int(name[1:]))
    overview = ["| table | what it compares | seeds | minutes of a core | order agrees |", "|---|---|---|---|---|"]
    sections = []
    for name in names:
        found = kept(name)
        if name in tables.NOT_MEASURED:
            title, _, why = tables.NOT_MEASURED[name].partition(": ")
            overview.append(f"| {name} | {title} | | | not measured: {why.removesuffix('.')} |")
        elif name in played:
            table = played[name]
            order = found["order"] if found else "not run yet"
            link = f"[{name}](#{_anchor(name, table.title)})"
            overview.append(f"| {link} | {table.title} | {_seeds(found)} | {table.minutes} | {order} |")
            body = results.markdown(table, found) if found else "Not run yet.\n"
            command = f"edgewise bench reproduce {name}"
            sections.append(f"## {name}: {table.title}\n\n    {command}\n\n{body}")
        else:
            other = elsewhere[name]
            assert found is not None, f"benchmarks/results/{name}.json is missing"
            count = "1" if "one seed" in found["conditions"] else "3"
            overview.append(
                f"| [{name}](#{_anchor(name, other.title)}) | {other.title} | {count} | | {found['order']} |"
            )
            sections.append(f"## {name}: {other.title}\n\n    {other.command}\n\n{_carried(found, other.needs)}")
    return "\n".join([HEAD, *overview, "", *sections])


def _anchor(name: str, title: str) -> str:
    """The anchor of a section."""
    return f"{name}: {title}".lower().replace(":", "").replace(" ", "-")


def _seeds(found: dict[str, Any] | None) -> str:
    """The number of seeds."""
    return str(len(found["seeds"])) if found else ""


def _carried(found: dict[str, Any], needs: str) -> str:
    """The section of a table that a program of ``benchmarks/`` measures."""
    lines = [f"| {' | '.join(found['columns'])} |", "|---|" + "---:|" * (len(found["columns"]) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in found["rows"]]
    lines += ["", f"Conditions: {found['conditions']}. The command needs {needs}.", ""]
    lines += [f"- Published: {one}" for one in found["published"]]
    lines += [f"- **Order agrees: {found['order']}.** {found['why']}"]
    lines += [f"- All figures: [measurements](../benchmarks/RESULTS.md#{found['section']})."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
