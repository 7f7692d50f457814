"""The [drift] section of a recipe: the devices' answers to text that drifts (``data.stream``), beside replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError


class DriftSection(Section):
    """A penalty for weights that earlier windows of text needed (online EWC)."""

    penalty: float = Field(
        0.0, ge=0, le=1e12, description="weight of the penalty for moving weights that earlier windows needed; 0 = none"
    )
    penalty_keep: float = Field(
        0.9, ge=0, le=1, description="share of a weight's importance that stays when a device gets to its next window"
    )
    penalty_blocks: int = Field(
        32, ge=1, le=10_000, description="blocks of its last window that a device measures importance on"
    )

    @property
    def stays(self) -> str | None:
        """Name what a device keeps for itself between rounds. None where it keeps nothing."""
        return "the importance of each weight for earlier text" if self.penalty else None


def drift_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that [drift] does not go with."""
    drift: DriftSection = recipe.drift
    fields = type(drift).model_fields
    if not drift.penalty:
        if given := [key for key in fields if getattr(drift, key) != fields[key].default]:
            what = f"drift.{given[0]} is about a penalty, and drift.penalty = 0 asks for none"
            yield SettingError("E-COMBO", what, "give drift.penalty, or leave it out")
        return
    if not recipe.data.stream:
        what = "drift.penalty is for text that arrives over time, and data.stream is false"
        yield SettingError("E-COMBO", what, "write data.stream = true with its windows, or leave out [drift]")
    for name, (used, why) in _refused(recipe).items():
        if used:
            yield SettingError("E-COMBO", f"drift.penalty with {name}: {why}", f"leave out {name}, or drift.penalty")


def _refused(recipe: Any) -> dict[str, tuple[bool, str]]:
    """List what a penalty does not go with: its name, whether the recipe asks for it, and the reason."""
    trainable = recipe.trainable
    return {
        'codec = "adaptive"': (
            recipe.codec == "adaptive" and recipe.privacy == "hidden",
            "behind masks a device encodes when the round has gone on, and what it keeps would have to wait",
        ),
        '[strategy] kind = "zeroth_order"': (
            recipe.strategy.get("kind") == "zeroth_order",
            "its devices take no gradient that a penalty could change",
        ),
        f'trainable.rule = "{trainable.rule}"': (
            bool(trainable.moves_base),
            "it moves products of factors to the base, and the factors begin anew beside an importance of old ones",
        ),
        f"engine.batch_devices = {recipe.engine.batch_devices}": (
            recipe.engine.batch_devices > 1,
            "devices with an importance of their own train one by one",
        ),
        "[distill]": (recipe.distill.active, "it replaces the weights whose importance devices have measured"),
    }
