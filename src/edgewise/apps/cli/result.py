"""Result of a run on the terminal: quality, cost, privacy, time, and the path of the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.apps.report import alone_or_together, numbers, personal, privacy, simulator_metrics, traffic

if TYPE_CHECKING:
    from rich.console import Console


def show(console: Console, s: Mapping[str, Any], out: Path) -> None:
    """Print the result of ``summary.build``."""
    from rich.text import Text

    console.print()
    console.print(Text(alone_or_together.sentence(s), "bold"))
    if note := alone_or_together.alone_won_reason(s):
        console.print(Text(note))
    console.print()
    console.print(_quality_table(s, wide=console.width >= 104))
    console.print(_cost_table(s))
    r = s["rounds"]
    if r["stopped"]:
        console.print(Text(numbers.early_end_reason(r["played"], r["planned"], r["waited"], r["kept"])))
    elif r["kept"] != r["played"]:
        why = "because its held-out loss is the lowest"
        console.print(Text(f"{numbers.counts(r['kept'])}, of {r['played']} played, {why}"))
    if r["abandoned"]:
        console.print(Text(f"{r['met']} rounds changed the model, {r['abandoned']} were abandoned", "yellow"))
    if not s["complete"]:
        console.print(Text(f"not complete: {numbers.unfinished(s)}", "yellow"))
    # The path stays on one line, so that a person can click or copy it.
    console.print(Text("report  ", "dim").append(str(out / "report.html"), "bold"), soft_wrap=True)


def _quality_table(s: Mapping[str, Any], wide: bool) -> Any:
    """Make the table of perplexities."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, title="held-out perplexity, lower is better", title_justify="left", pad_edge=False
    )
    table.add_column("model")
    for head in ("weighted mean", "median", "worst 10 %", "change"):
        table.add_column(head, justify="right")
    for name in numbers.shown(s):
        q, style = s["perplexity"][name], "bold" if name == numbers.result(s) else ""
        label = Text(numbers.MODELS[name], style)
        if wide:
            label.append(f"  {numbers.MEANS[name]}", "dim not bold")
        if q is None:
            table.add_row(label, Text("not run", "dim"), "", "", "")
            continue
        change = "" if name == "base" else numbers.percent(s["change_percent"][name])
        figures = [numbers.figure(q, k) for k in ("weighted_mean", "median", "worst_decile")]
        table.add_row(label, *(Text(c, style) for c in [*figures, change]))
    return table


def _cost_table(s: Mapping[str, Any]) -> Any:
    """Make the table of bytes, privacy, time and participation."""
    from rich.table import Table

    b, t, p, share = s["bytes"], s["seconds"], s["participation"], s["share_improved"]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    if share["over_base"] is not None:
        over = share["over_local_only"]
        more = f", training alone on {numbers.percent(100 * over, signed=False)}" if over is not None else ""
        grid.add_row(
            "devices",
            f"the federated model beats the base on {numbers.percent(100 * share['over_base'], signed=False)}{more}",
        )
    for name, means in simulator_metrics.latest(s).items():
        grid.add_row(name, ", ".join(f"{model} {mean:.4g}" for model, mean in means.items()))
    if sentence := alone_or_together.going_on(s):
        grid.add_row("longer", sentence)
    if sentence := personal.sentence(s):
        grid.add_row("personal", sentence)
    if sentence := personal.unseen_sentence(s):
        grid.add_row("unseen", sentence)
    for key, name in (("up", "upload"), ("down", "download")):
        size = numbers.size(b[f"{key}_per_device_round"])
        ratio = numbers.against(b[f"{key}_ratio"], b["up_ratio_update"] if key == "up" else None)
        grid.add_row(name, f"{size} per device and round, {ratio}")
    if sentence := traffic.split_in_words(b["split"]):
        grid.add_row("cut", sentence)
    lost = ", ".join(
        [*(f"{n} {code}" for code, n in p["lost_by_code"].items()), *([f"{p['late']} late"] * bool(p["late"]))]
    )
    unused = f"; {numbers.count(p['unused'])} in abandoned rounds" if p["unused"] else ""
    if sentence := privacy.sentence(s):
        grid.add_row("privacy", sentence)
    counted = f"{numbers.count(p['accepted'])} of {numbers.count(p['invited'])} invitations"
    grid.add_row("counted", f"{counted}{unused}{f'; lost: {lost}' if lost else ''}")
    if used := [r for r in s["rungs"] if r["accepted"]]:
        grid.add_row("rungs", ", ".join(f"{r['accepted']} × {r['name'].replace(', ', ' ')}" for r in used))
    wall = ", ".join(f"{k} {numbers.duration(t[k])}" for k in ("rounds", "evaluate", "compare") if t[k])
    grid.add_row("time", f"{numbers.duration(t['total'])}: {wall}" if wall else numbers.duration(t["total"]))
    work = ", ".join(f"{k} {numbers.duration(t[k])}" for k in ("train", "encode", "aggregate"))
    grid.add_row("work", f"{work} (device and server seconds)")
    if peak := s["memory"]["process_peak"]:
        grid.add_row("memory", f"{numbers.size(peak)} at most in a process that trained, with Python and torch")
    return grid
