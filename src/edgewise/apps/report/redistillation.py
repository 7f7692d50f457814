"""Distillations between the rounds of a run: their line in a log, rows in ``summary.json``, and panel in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.apps.report import numbers
from edgewise.apps.report.html import panel, row, table
from edgewise.core import events

REASONS = {"perplexity": "its perplexity on public text did not fall", "diversity": "it writes less diverse text"}
HEADS = ("after round", "verdict", "perplexity before", "after", "diversity before", "after", "teacher", "adapted")
HINT = (
    "The server distilled the model again on public text. A student is kept where its perplexity on held-out public "
    "text fell and its writing stayed diverse (share of distinct pairs of tokens)."
)


def redistillation_line(e: events.Redistilled) -> str:
    """Write a distillation as one line of a log."""
    verdict = "kept" if e.reason is None else f"rejected, {REASONS[e.reason]}"
    change = f"public perplexity {numbers.perplexity(e.perplexity_before)} -> {numbers.perplexity(e.perplexity)}"
    wrote = f"diversity {e.diversity_before:.2f} -> {e.diversity:.2f}"
    return f"distilled {e.round + 1}: {verdict}; {change}, {wrote}  {numbers.duration(e.seconds)}"


def rows(log: Sequence[events.AnyEvent]) -> list[dict[str, Any]]:
    """Make a row for each distillation (``summary_types.DistillationRow``)."""
    found = [e for e in log if isinstance(e, events.Redistilled)]
    names = [name for name in events.Redistilled.__struct_fields__ if name != "at_s"]
    return [{name: getattr(e, name) for name in names} for e in found]


def distillation_panel(s: Mapping[str, Any]) -> str:
    """Build the panel of the report. Empty without a distillation."""
    if not (found := s.get("distillations")):
        return ""
    body = [row(str(one["round"] + 1), _cells(one), plain=(0, 1)) for one in found]
    return '<div class="gap"></div>' + panel("Distillations", HINT, table(HEADS, body, plain=(0, 1)))


def _cells(one: Mapping[str, Any]) -> list[str]:
    """List the figures of a distillation for a row."""
    verdict = "kept" if one["kept"] else f"rejected: {one['reason']}"
    pair = [numbers.perplexity(one[key]) for key in ("perplexity_before", "perplexity")]
    wrote = [f"{one[key]:.2f}" for key in ("diversity_before", "diversity")]
    return [verdict, *pair, *wrote, *(numbers.perplexity(one[key]) for key in ("teacher_before", "teacher"))]
