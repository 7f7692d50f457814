"""Simulator metrics: figures that a person's functions measure on each device of a simulation, exactly.

They are taken from the trainers, stored as events, and shown in summary and report. They travel in no frame. Metrics
that devices send within bounds are ``[[metric]]`` of the recipe (``core.metric``, ``summed_metrics``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import fsum
from typing import Any

from edgewise.apps.report import numbers as words
from edgewise.apps.report import svg
from edgewise.apps.report.html import panel, row, table
from edgewise.core import events
from edgewise.core.vector import Vector
from edgewise.drivers.simulation.probes import Probes
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked

TRAINING, HELD = "training", "held_out"


@dataclass(frozen=True)
class SimulatorMetrics:
    """An evaluator that also stores the metrics that trainers noted."""

    probes: Probes
    executor: Executor
    store: RunStore
    tell: Callable[[events.AnyEvent], None]

    def evaluate(self, model: str, round: int, params: Vector) -> events.Evaluated:
        """Evaluate a model as ``engine.ports.Evaluator`` says, and store the metrics noted meanwhile."""
        found = self.probes.evaluate(model, round, params)
        self.take(model, round)
        return found

    def take(self, model: str | None = None, round: int | None = None) -> None:
        """Store the metrics noted since the last call. Held-out figures are stored where model and round are named."""
        noted: dict[tuple[int, str], dict[str, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
        for answer in checked(self.executor.broadcast(jobs.TakeMetrics())):
            for kind, number, device, name, value in answer.notes if isinstance(answer, jobs.MetricNotes) else ():
                if kind == TRAINING and number is not None:
                    noted[number, TRAINING][name][device] = value
                elif model is not None and round is not None:
                    noted[round, model][name][device] = value
        for (number, whose), metrics in sorted(noted.items()):
            plain = {name: dict(sorted(each.items())) for name, each in sorted(metrics.items())}
            event = events.OwnMeasured(round=number, model=whose, metrics=plain)
            self.store.append(event)
            self.tell(event)


HELD_OUT = "held out"  # The series of metrics of models on held-out data.


def rows(log: Sequence[events.AnyEvent], noised: bool) -> list[dict[str, Any]]:
    """Make a row for each metric, model and round, in order (``summary_types.SimulatorMetric``).

    An interrupted and resumed round may have two events, whose figures are joined. With ``noised`` the figures of
    single devices are left out.
    """
    found: dict[tuple[int, str, str], dict[str, float]] = defaultdict(dict)
    for e in log:
        if isinstance(e, events.OwnMeasured):
            for name, each in e.metrics.items():
                found[e.round, e.model, name].update(each)
    return [
        {
            "name": name,
            "model": model,
            "round": round,
            "mean": fsum(each.values()) / len(each),
            "lowest": min(each.values()),
            "highest": max(each.values()),
            "measured": len(each),
            "devices": {} if noised else dict(sorted(each.items())),
        }
        for (round, model, name), each in sorted(found.items())
    ]


def series(s: Mapping[str, Any]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Map each metric's name to "held out" and "training", and these to points (rounds played, mean over devices)."""
    out: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for m in s.get("simulator_metrics") or ():
        if m["model"] not in (TRAINING, "base", "federated"):
            continue
        kind = "training" if m["model"] == TRAINING else HELD_OUT
        out.setdefault(m["name"], {}).setdefault(kind, []).append((m["round"] + 1.0, m["mean"]))
    return out


def latest(s: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Map each metric's name to the latest mean over devices of each model, in the order of tables of models."""
    found: dict[str, dict[str, float]] = {}
    means = {(m["name"], m["model"]): m["mean"] for m in s.get("simulator_metrics") or () if m["model"] != TRAINING}
    for name, _ in means:
        found[name] = {words.MODELS[model]: means[name, model] for model in words.MODELS if (name, model) in means}
    return found


def panels(s: Mapping[str, Any]) -> str:
    """Draw a chart for each metric, and a table of the last figures. Empty without metrics."""
    found = series(s)
    if not found:
        return ""
    shown, hint = [], "Simulator metric: mean over the measured devices. It does not travel with updates."
    for name, kinds in found.items():
        lines = [
            svg.Series(kind, "federated" if kind == HELD_OUT else "base", points, dots=True)
            for kind, points in kinds.items()
        ]
        drawn = svg.lines(f"{name} by rounds played", lines, x_name="rounds played", unit=lambda v: f"{v:.4g}")
        shown.append(panel(_metric_title(name), hint, drawn))
    last = {(m["name"], m["model"]): m for m in s["simulator_metrics"]}
    body = [
        row(_metric_title(f"{name}, {words.MODELS.get(model, model)}"), _metric_figures(m))
        for (name, model), m in sorted(last.items())
    ]
    heads = ("metric", "after rounds", "mean", "lowest", "highest", "devices")
    latest = panel("Simulator metrics", "The latest figures.", table(heads, body))
    return f'<div class="gap"></div>{"".join(shown)}{latest}'


def _metric_title(name: str) -> str:
    """Write the name of a metric as HTML."""
    return escape(svg.clipped(name, 300))


def _metric_figures(m: Mapping[str, Any]) -> list[str]:
    """List the figures of a metric for a row."""
    numbers = [f"{m[key]:.4g}" for key in ("mean", "lowest", "highest")]
    return [words.count(m["round"] + 1), *numbers, words.count(m["measured"])]
