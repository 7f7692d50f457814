"""The [statistics] section of a recipe: devices contribute statistics of their data in place of updates.

    [statistics]
    of = "text"

``edgewise stats`` makes such a recipe from that of a training run (``plan.statistics``). Nothing is trained. Stages,
secure aggregation, noise, ledger and rounds are as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError

ROUNDS: Mapping[str, int] = {"text": 2, "loss": 1}  # Distances need the mean vocabulary of the round before.


class StatisticsSection(Section):
    """Statistics in place of training."""

    of: Literal["none", "text", "loss"] = Field(
        "none",
        description="none: devices train; text: they count their documents, lengths and tokens; loss: they measure "
        "the model of model.base on their held-out text",
    )

    @property
    def active(self) -> bool:
        """True if devices contribute statistics."""
        return self.of != "none"


def statistics_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that statistics do not go with."""
    if not recipe.statistics.active:
        return
    given, fix = f'statistics.of = "{recipe.statistics.of}"', "let `edgewise stats` make the recipe"
    if recipe.round.rounds != (rounds := ROUNDS[recipe.statistics.of]):
        what = f"{given} with round.rounds = {recipe.round.rounds}: such statistics take {rounds}"
        yield SettingError("E-COMBO", what, f"write rounds = {rounds}")
    others = {
        'dp.unit = "example"': recipe.dp.example,
        f'data.source = "{recipe.data.source}"': recipe.data.source in ("keywords", "vibration"),
        "data.stream": bool(recipe.data.stream),
        "eval.on_devices": recipe.eval.on_devices,
        "round.patience or round.keep": recipe.round.chooses,
        "report.samples": bool(recipe.report.samples),
        "[[metric]]": bool(recipe.metric),
        f'strategy = "{recipe.strategy.get("kind")}"': recipe.strategy.get("kind") != "fedavg",
        f'trainable.kind = "{recipe.trainable.kind}"': recipe.trainable.kind != "full",
        "training.local_epochs": bool(recipe.training.local_epochs),
    }
    for name in ("buffer", "distill", "drift", "personal", "prune", "retriever", "split"):
        section = getattr(recipe, name)
        others[f"[{name}]"] = section != type(section)()
    for name, used in others.items():
        if used:
            yield SettingError("E-COMBO", f"{given} with {name}, which is for training", fix)
