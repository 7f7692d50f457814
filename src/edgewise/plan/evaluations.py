"""Evaluations of a run on held-out text, as a recipe asks for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgewise.plan.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class PlannedEvaluations:
    """The evaluations of a run on held-out text, and the decisions that follow from their losses.

    Attributes:
        every: rounds between evaluations. The last round is always evaluated; 0 evaluates only the last.
        devices: largest number of devices to evaluate on; 0 = all.
        patience: number of evaluations in a row without a lower loss that end the run; 0 = never.
        keep: the model that counts. "last" is that of the last round, "best" that of the lowest loss.
        on_devices: True where the devices of a round measure its model. The mean loss then comes with the sum.
    """

    every: int = 5
    devices: int = 0
    patience: int = 0
    keep: Literal["last", "best"] = "last"
    on_devices: bool = False

    @property
    def choose(self) -> bool:
        """True where losses decide when the run ends, or which of its models counts."""
        return bool(self.patience) or self.keep == "best"


def planned_evaluations(recipe: Recipe) -> PlannedEvaluations:
    """Return the evaluations that a recipe asks for."""
    section, round = recipe.eval, recipe.round
    return PlannedEvaluations(section.every, section.devices, round.patience, round.keep, section.on_devices)
