"""Result of a deployment on the terminal: its models, the bytes of its links, and the path of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.apps.deployments.industrial_page import CLAIM, LINKS, MODELS, percent
from edgewise.apps.report import numbers

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, found: Mapping[str, Any], out: Path) -> None:
    """Print the result of ``industrial.figures``."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=f"after {found['rounds']} rounds", title_justify="left", pad_edge=False)
    table.add_column("model")
    keys = {"accuracy": "accuracy", "early": "early faults", "false_alarms": "false alarms", "missed": "missed"}
    for head in keys.values():
        table.add_column(head, justify="right")
    for key, name in MODELS.items():
        if key in found["models"]:
            style = "bold" if key == "federated" else ""
            measures = [percent(found["models"][key].get(k)) for k in keys]
            table.add_row(Text(name, style), *(Text(one, style) for one in measures))
    console.print(table)
    for link, name in LINKS.items():
        one = found["links"][link]
        console.print(
            f"{name}: {numbers.size(one['total'])}, {percent(one['share'])} of the raw samples", highlight=False
        )
    console.print(Text(CLAIM, "dim"))
    console.print(Text("report  ", "dim").append(str(out / "report.html"), "bold"), soft_wrap=True)
