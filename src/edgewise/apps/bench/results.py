"""Results of a table: figures over seeds, and whether the order of methods agrees with what was published.

mean, sd      over the seeds; sd is that of a sample, and null with one seed
agrees        of a claim: "yes" if it holds with every seed, "no" if it holds with none, else "undecided"
order         of a table: what all claims say, or "partly" where they differ
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgewise.apps.bench.table import Claim, PaperTable
from edgewise.apps.report import numbers

if TYPE_CHECKING:
    from rich.console import Console


def build_results(table: PaperTable, cells: Sequence[Mapping[str, Any]], rounds: int | None = None) -> dict[str, Any]:
    """Build the results of a table from its cells.

    Args:
        rounds: rounds that were played in place of the table's own.
    Returns:
        Plain JSON: ``table``, ``seeds``, ``rounds``, ``cells``, ``claims`` (``says``, ``agrees``) and ``order``.
    """
    claims = [{"says": claim.says, "agrees": claim_agrees(table, claim, cells)} for claim in table.claims]
    return {
        "schema": 1,
        "table": table.name,
        "seeds": sorted({cell["seed"] for cell in cells}),
        "rounds": rounds or table.recipe["round"]["rounds"],
        "cells": [dict(cell) for cell in cells],
        "claims": claims,
        "order": order_agrees([claim["agrees"] for claim in claims]),
    }


def claim_agrees(table: PaperTable, claim: Claim, cells: Sequence[Mapping[str, Any]]) -> str:
    """Tell whether a claim holds with every seed, with none, or with some."""
    better, worse = (_by_seed(table, name, cells) for name in (claim.better, claim.worse))
    pairs = [(better[seed], worse[seed]) for seed in better.keys() & worse.keys()]
    held = [a <= b * (1 + claim.margin) if claim.margin else a < b for a, b in pairs]
    return "undecided" if not held or any(held) != all(held) else "yes" if all(held) else "no"


def _by_seed(table: PaperTable, row: str, cells: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Collect the first column of a row by seed."""
    found = {cell["seed"]: cell["figures"][table.columns[0].name] for cell in cells if cell["row"] == row}
    return {seed: value for seed, value in found.items() if value is not None}


def order_agrees(claims: Sequence[str]) -> str:
    """Combine what the claims of a table say."""
    return claims[0] if len({*claims}) == 1 else "partly"


def figures_of(cells: Sequence[Mapping[str, Any]], row: str, column: str) -> list[float]:
    """List a row's figures of a column, a seed each. Cells without one are left out."""
    found = [cell["figures"][column] for cell in cells if cell["row"] == row]
    return [x for x in found if x is not None]


def mean_and_sd(values: Sequence[float], digits: int) -> str:
    """Format a mean and its sample standard deviation over seeds; the deviation is left out where it is 0."""
    if not values:
        return numbers.NOTHING
    mean = f"{statistics.fmean(values):,.{digits}f}"
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean} ± {sd:,.{digits}f}" if round(sd, digits) else mean


def table_rows(table: PaperTable, found: Mapping[str, Any]) -> list[list[str]]:
    """Format the rows of a table: a name, then a figure for each column."""
    return [
        [row.name, *(mean_and_sd(figures_of(found["cells"], row.name, c.name), c.digits) for c in table.columns)]
        for row in table.rows
    ]


def order_sentence(found: Mapping[str, Any]) -> str:
    """Say whether the order agrees, and how many of the claims hold."""
    held = sum(claim["agrees"] == "yes" for claim in found["claims"])
    return f"Order agrees: {found['order']} ({held} of {len(found['claims'])} claims)."


def markdown(table: PaperTable, found: Mapping[str, Any]) -> str:
    """Write the results as Markdown: the table, what was published, and whether the order agrees."""
    seeds = ", ".join(map(str, found["seeds"]))
    played = f"{found['rounds']} rounds, seeds {seeds}. Mean ± standard deviation over seeds."
    head = ["method", *(column.name for column in table.columns)]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * len(table.columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in table_rows(table, found)]
    lines += ["", played, ""]
    lines += [f"- Published: [{p.who}]({p.link}), {p.setting}: {p.figures}." for p in table.published]
    lines += [f"- **{order_sentence(found)}**"]
    for claim, result in zip(table.claims, found["claims"], strict=True):
        lines.append(
            f"    - {result['says']} ({table.published[claim.source].who.partition(',')[0]}): {result['agrees']}"
        )
    lines += [f"- What differs: {table.differs}"]
    return "\n".join(lines) + "\n"


def show_results(console: Console, table: PaperTable, found: Mapping[str, Any]) -> None:
    """Print the results of a table."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(
        title=f"{table.name}  {table.title}", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    grid.add_column("method")
    for column in table.columns:
        grid.add_column(column.name, justify="right")
    for row in table_rows(table, found):
        grid.add_row(*row)
    console.print(grid)
    for published in table.published:
        console.print(Text(f"published: {published.who}, {published.setting}: {published.figures}", "dim"))
    for claim in found["claims"]:
        console.print(f"{claim['agrees']:>9}  {claim['says']}", highlight=False)
    console.print(order_sentence(found), highlight=False)
    console.print(Text(f"{table.differs}\n", "dim"))
