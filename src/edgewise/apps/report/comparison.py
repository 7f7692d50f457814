"""Comparison of several runs: their figures, their differing settings, and the runs that cannot be compared.

Perplexities can be compared if the runs begin with the same base model and measure the same text: the same data, and
the same held-out tokens of the same devices. For each run the differences from the first run are listed.

    found = build_comparison([Path("runs/a"), Path("runs/b")])
    comparison_page.write(found, Path("compare.html"))
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgewise.apps.report import numbers, simulator_metrics, summary
from edgewise.apps.runs import run_dirs
from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.sections import PLACES

if TYPE_CHECKING:
    from rich.console import Console

    from edgewise.drivers.storage.run_store import RunStore

# These settings decide the speed or the name of a simulation, and never its result.
UNTOLD = ("name", *(f"simulation.{key}" for key in PLACES), "engine.device")


def build_comparison(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare the runs in ``folders``, as plain JSON.

    Returns:
        ``runs``: a row each: ``name`` (short and unique), ``run_dir``, ``complete``, ``rounds``, ``perplexity``
        (weighted mean by model; null if it was not measured), ``worst_decile`` (federated),
        ``up_per_device_round``, ``up_total``, ``seconds``, ``epsilon`` (spent so far; null without a budget),
        ``share_over_local_only``, ``curve`` (``played``, ``perplexity``, ``up``), ``loss`` (``round``, ``loss``),
        ``metrics`` (a person's own ones on held-out data: name -> ``played``, ``mean`` over devices).
        ``settings``: recipe key -> its value in each run, for keys that differ.
        ``not_comparable``: name of a run -> its differences from the first run.
    Raises:
        RecipeError: E-MISSING for fewer than two runs. StoreError: E-RESUME if a folder holds no run.
    """
    if len(folders) < 2:
        raise RecipeError("E-MISSING", "a comparison needs two runs or more.", "name their folders: runs/a runs/b.")
    names = _unique_names(folders)
    rows, recipes, grounds = [], [], []
    for folder, name in zip(folders, names, strict=True):
        with run_dirs.opened(folder) as store:
            found = summary.build(store)
            grounds.append(_common_facts(store))
        rows.append(_run_row(found, name, folder))
        recipes.append(flat(found["recipe"]))
    settings = {
        key: [one.get(key) for one in recipes]
        for key in sorted({key for one in recipes for key in one})
        if key not in UNTOLD and any(one.get(key) != recipes[0].get(key) for one in recipes)
    }
    apart = {name: _reasons_apart(ground, grounds[0]) for name, ground in zip(names, grounds, strict=True)}
    return {"runs": rows, "settings": settings, "not_comparable": {n: why for n, why in apart.items() if why}}


def _unique_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that are unique."""
    parts = [Path(os.path.abspath(folder)).parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({i + 1})" for i, p in enumerate(parts)]  # A person named one folder twice.


def _common_facts(store: RunStore) -> dict[str, Any]:
    """Collect the facts that two runs must share: data, held-out tokens and base model.

    ``base_loss`` is the base model's loss on the held-out text in nats per token, or None.
    """
    run = store.run()
    assert run is not None  # ``run_dirs.opened`` ensures it.
    facts, recipe = run["facts"], run["recipe"]
    data = {k: v for k, v in recipe["data"].items() if k != "path"}
    measures = store.measures("base")
    held = {device: tokens for device, (_, tokens) in measures.items()}
    total = sum(held.values())
    return {
        "data": facts.get("fingerprint") or data,
        "held": held,
        "base": recipe["model"]["base"],
        "base_loss": math.fsum(nll for nll, _ in measures.values()) / total if total else None,
    }


def _reasons_apart(one: Mapping[str, Any], first: Mapping[str, Any]) -> list[str]:
    """List the reasons why perplexities of two runs cannot be compared.

    Names of base models say little. Two bases differ if their losses on the same text differ by more than rounding.
    """
    why = ["other data"] if one["data"] != first["data"] else []
    why += ["other held-out text"] if one["held"] != first["held"] else []
    losses = (one["base_loss"], first["base_loss"])
    other = one["base"] != first["base"] if why or None in losses else not math.isclose(*losses, rel_tol=1e-3)
    return [*why, "another base model"] if other else why


def _run_row(s: Mapping[str, Any], name: str, folder: Path) -> dict[str, Any]:
    """Make the row of a run."""
    spent = [r["epsilon"] for r in s["per_round"] if r.get("epsilon")]
    up, total = {0: 0.0}, 0.0
    for r in s["per_round"]:
        total += r["bytes_up"]
        up[r["round"] + 1] = total / (s["population"] or 1)
    federated = s["perplexity"]["federated"]
    return {
        "name": name,
        "run_dir": str(folder),
        "complete": s["complete"],
        "rounds": s["rounds"]["played"],
        "perplexity": {model: q["weighted_mean"] if q else None for model, q in s["perplexity"].items()},
        "worst_decile": federated["worst_decile"] if federated else None,
        "up_per_device_round": s["bytes"]["up_per_device_round"],
        "up_total": s["bytes"]["up_total"],
        "seconds": s["seconds"]["total"],
        "epsilon": spent[-1] if spent else None,
        "share_over_local_only": s["share_improved"]["over_local_only"],
        "curve": [
            {"played": c["played"], "perplexity": c["weighted_mean"], "up": up[c["played"]]}
            for c in s["curve"]
            if c.get("weighted_mean") is not None and c["played"] in up
        ],
        "loss": [
            {"round": r["round"] + 1, "loss": r["loss_last"]} for r in s["per_round"] if r["loss_last"] is not None
        ],
        "metrics": {
            metric: [
                {"played": int(played), "mean": mean} for played, mean in sorted(kinds[simulator_metrics.HELD_OUT])
            ]
            for metric, kinds in simulator_metrics.series(s).items()
            if simulator_metrics.HELD_OUT in kinds
        },
    }


def flat(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten ``{"training": {"lr": 1}}`` to ``{"training.lr": 1}``, and lists of parts to a line: ``weigh, wrap``."""
    out: dict[str, Any] = {}
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            out |= {f"{key}.{name}": one for name, one in value.items()}
        elif isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            out[key] = ", ".join(map(_part_in_words, value))
        else:
            out[key] = value
    return out


def _part_in_words(part: Mapping[str, Any]) -> str:
    """Write a part of a recipe with its keys."""
    rest = ", ".join(f"{k}={v}" for k, v in part.items() if k != "kind")
    return f"{part.get('kind')}({rest})" if rest else str(part.get("kind"))


def setting_in_words(value: Any) -> str:
    """Format a recipe's value for a person."""
    if value is None:
        return numbers.NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def incomparable_reason(name: str, why: Sequence[str]) -> str:
    """Say why the perplexities of a run cannot be compared with those of the first."""
    return f"{name} has {' and '.join(why)} than the first run. Their perplexities cannot be compared."


HEADS = ("base", "alone", "federated", "personal", "together", "up/round", "up in all", "rounds", "time", "epsilon")
PERPLEXITIES, WIDE = 5, 120  # Number of heads on perplexity. A screen of WIDE columns holds all heads in one table.
SHOWN = ("base", "local_only", "federated", "personal", "centralised")


def run_figures(row: Mapping[str, Any]) -> list[str]:
    """Format one run's figures under ``HEADS``."""
    perplexities = [row["perplexity"].get(model) for model in SHOWN]
    return [
        *(numbers.NOTHING if p is None else numbers.perplexity(p) for p in perplexities),
        numbers.size(row["up_per_device_round"]),
        numbers.size(row["up_total"]),
        f"{row['rounds']}{'' if row['complete'] else ' *'}",
        numbers.duration(row["seconds"]),
        numbers.NOTHING if row["epsilon"] is None else f"{row['epsilon']:.3g}",
    ]


def metric_rows(found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """List each own metric with its latest mean in each run. A dash for a run without it."""
    names = sorted({name for row in found["runs"] for name in row["metrics"]})
    return [(name, [_latest_mean(row["metrics"].get(name, ())) for row in found["runs"]]) for name in names]


def _latest_mean(points: Sequence[Mapping[str, float]]) -> str:
    """Format the last mean of a metric."""
    return f"{points[-1]['mean']:.4g}" if points else numbers.NOTHING


def best_run(found: Mapping[str, Any]) -> str | None:
    """Name the comparable run with the lowest federated perplexity. None if fewer than two can be compared."""
    fit = [
        r
        for r in found["runs"]
        if r["name"] not in found["not_comparable"] and r["perplexity"].get("federated") is not None
    ]
    return min(fit, key=lambda r: r["perplexity"]["federated"])["name"] if len(fit) > 1 else None


def show_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """Print the result of ``build``: figures, differing settings, and runs that cannot be compared."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    wins = best_run(found)
    halves = [range(len(HEADS))] if console.width >= WIDE else [range(PERPLEXITIES), range(PERPLEXITIES, len(HEADS))]
    for shown in halves:
        title = "held-out perplexity, lower is better" if shown.start == 0 else "cost"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        table.add_column("run", overflow="fold")
        for i in shown:
            table.add_column(HEADS[i], justify="right", no_wrap=True)
        for row in found["runs"]:
            style, all_cells = "bold" if row["name"] == wins else "", run_figures(row)
            table.add_row(Text(row["name"], style), *(Text(all_cells[i], style) for i in shown))
        console.print(table)
    if not all(row["complete"] for row in found["runs"]):
        console.print(Text("* not complete", "dim"))
    by_run = {
        "own metrics, latest mean over devices": metric_rows(found),
        "settings that differ": [
            (key, list(map(setting_in_words, values))) for key, values in found["settings"].items()
        ],
    }
    for title, rows in by_run.items():
        if rows:
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
            table.add_column("key" if title.startswith("settings") else "metric", style="dim", overflow="fold")
            for row in found["runs"]:
                table.add_column(row["name"], overflow="fold")
            for name, cells in rows:
                table.add_row(Text(name), *map(Text, cells))
            console.print(table)
    for name, why in found["not_comparable"].items():
        console.print(Text(incomparable_reason(name, why), "yellow"))
