"""The pruning between a run's rounds: how much of the model that counts is zero, in ``summary.json`` and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgewise.apps.report.html import panel
from edgewise.core import events
from edgewise.plan.recipe.prune import PruneSection


def figures(recipe: Mapping[str, Any], finished: Sequence[events.RoundFinished], played: int) -> dict[str, Any] | None:
    """Return the ``wanted`` and the ``zero`` share of each matrix's weights. None where the recipe does not prune.

    A round without a sum prunes nothing. The next round with one makes up for it. After the last one nothing does, so
    ``zero`` is then below ``wanted``.

    Args:
        recipe: the tables of the run's recipe.
        finished: the ends of its rounds.
        played: number of rounds before the model that counts.
    """
    section = PruneSection.model_validate(recipe.get("prune", {}))
    if not section.active:
        return None
    last = max((e.round + 1 for e in finished if e.met and e.round < played), default=0)
    return {"wanted": 1.0 - section.to, "zero": section.pruned(last, recipe["round"]["rounds"])}


def pruning_panel(s: Mapping[str, Any]) -> str:
    """Build the panel of the report. Empty without pruning."""
    if not (found := s.get("pruning")):
        return ""
    text = f"<p>{100 * found['zero']:.3g} % of each matrix's weights are zero. "
    if found["zero"] < found["wanted"]:
        text += (
            f"The recipe asks for {100 * found['wanted']:.3g} %. Rounds at the end of the pruning had no sum or were "
            "not played, and only a round with a sum prunes. Play more rounds, or prune the model with "
            "<code>edgewise shrink</code>."
        )
    hint = "The server sets the weights of least magnitude to zero between rounds (<code>[prune]</code>)."
    return '<div class="gap"></div>' + panel("Pruning", hint, f"{text}</p>")
