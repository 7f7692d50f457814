"""The [drift] section of a recipe: the answers to text that drifts (``data.stream``), beside replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from edgewise.core.metric import IN_ALARM
from edgewise.plan.recipe.distill import STATEFUL
from edgewise.plan.recipe.rules import Section, SettingError


class DriftSection(Section):
    """A penalty for weights that earlier windows of text needed (online EWC), and alarms of devices (Page-Hinkley)."""

    penalty: float = Field(
        0.0, ge=0, le=1e12, description="weight of the penalty for moving weights that earlier windows needed; 0 = none"
    )
    penalty_keep: float = Field(
        0.9, ge=0, le=1, description="share of a weight's importance that stays when a device gets to its next window"
    )
    penalty_blocks: int = Field(
        32, ge=1, le=10_000, description="blocks of its last window that a device measures importance on"
    )
    alarm: bool = Field(
        False,
        description="devices compare their loss on held-out text of the window and of earlier ones",
    )
    alarm_blocks: int = Field(8, ge=1, le=10_000, description="held-out blocks of each side of the comparison, at most")
    tolerance: float = Field(
        0.25, ge=0, le=100, description="nats per token by which the comparison may rise above its mean in each round"
    )
    threshold: float = Field(0.5, gt=0, le=1000, description="summed rise above the tolerance that raises the alarm")
    alarm_rounds: int = Field(3, ge=1, le=1_000_000, description="rounds that a device stays in alarm")
    act_at: float = Field(
        0.5, gt=0, le=1, description="share of the round's devices in alarm from which on the server acts"
    )
    act_step: float = Field(
        1.0,
        gt=0,
        le=100,
        description="factor of the server's step while so many are in alarm; 1 = the server only shows it",
    )

    @property
    def stays(self) -> str | None:
        """Name what a device keeps for itself between rounds. None where it keeps nothing."""
        kept = ["the importance of each weight for earlier text"] * bool(self.penalty)
        kept += ["the course of its comparison of windows"] * self.alarm
        return " and ".join(kept) or None


_OF = {
    "penalty": ("penalty_keep", "penalty_blocks"),
    "alarm": ("alarm_blocks", "tolerance", "threshold", "alarm_rounds", "act_at", "act_step"),
}


def drift_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that [drift] does not go with."""
    drift: DriftSection = recipe.drift
    fields = type(drift).model_fields
    for key, further in _OF.items():
        given = [name for name in further if getattr(drift, name) != fields[name].default]
        if given and not getattr(drift, key):
            what = f"drift.{given[0]} is about drift.{key}, which is not asked for"
            yield SettingError("E-COMBO", what, f"give drift.{key}, or leave it out")
    if drift.stays is None:
        return
    used = "drift.penalty" if drift.penalty else "drift.alarm"
    if not recipe.data.stream:
        what = f"{used} is for text that arrives over time, and data.stream is false"
        yield SettingError("E-COMBO", what, "write data.stream = true with its windows, or leave out [drift]")
    for name, (asked, why) in _refused(recipe).items():
        if asked:
            yield SettingError("E-COMBO", f"{used} with {name}: {why}", f"leave out {name}, or {used}")
    if drift.act_step == 1.0:
        return
    declared = [one for one in recipe.metric if one.name == IN_ALARM]
    if not declared or (declared[0].lower, declared[0].upper) != (0.0, 1.0):
        what = f"drift.act_step needs the share of devices in alarm, and no [[metric]] sends {IN_ALARM} from 0 to 1"
        fix = f'write [[metric]] with name = "{IN_ALARM}", lower = 0.0 and upper = 1.0'
        yield SettingError("E-COMBO", what, fix)
    if (state := STATEFUL.get(kind := str(recipe.strategy.get("kind")))) is not None:
        what = f'drift.act_step with strategy = "{kind}": it keeps {state}, and a longer step would part from them'
        yield SettingError("E-COMBO", what, 'take strategy = "fedavg" or a server optimizer')


def _refused(recipe: Any) -> dict[str, tuple[bool, str]]:
    """List what [drift] does not go with: its name, whether the recipe asks for it, and the reason."""
    trainable, penalty = recipe.trainable, bool(recipe.drift.penalty)
    moves = bool(trainable.moves_base) and (penalty or recipe.drift.act_step != 1.0)
    return {
        'codec = "adaptive"': (
            recipe.codec == "adaptive" and recipe.privacy == "hidden",
            "behind masks a device encodes when the round has gone on, and what it keeps would have to wait",
        ),
        '[strategy] kind = "zeroth_order"': (
            recipe.strategy.get("kind") == "zeroth_order",
            "its devices take no gradient that a penalty could change, and report no alarm",
        ),
        f'trainable.rule = "{trainable.rule}"': (
            moves,
            "it moves products of factors to the base, and the factors begin anew beside an importance of old ones",
        ),
        f"engine.batch_devices = {recipe.engine.batch_devices}": (
            recipe.engine.batch_devices > 1,
            "devices with a memory of their own train one by one",
        ),
        "[distill]": (
            recipe.distill.active and penalty,
            "it replaces the weights whose importance devices have measured",
        ),
    }
