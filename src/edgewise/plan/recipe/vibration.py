"""The [vibration] section of a recipe: faults of machines from vibration (``data.source = "vibration"``)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.no_text import text_faults
from edgewise.plan.recipe.rules import Section, SettingError, rule
from edgewise.plan.recipe.split import Rounding

SOURCE = "vibration"  # word of ``data.source``


class VibrationSection(Section):
    """Faults from vibration: who trains what, how recordings are cut, and the model that the test rig seeds."""

    train: Literal["encoder", "layers", "end_to_end", "whole"] = Field(
        "encoder",
        description="encoder: nodes train it by a small head of their own; layers: factories train the others on "
        "activations, which go up once; end_to_end: activations and gradients cross in each step; whole: factories "
        "train the whole model on raw windows",
    )
    encoder: str = Field(
        "", description="train = layers: file of the encoder that nodes have, relative to the recipe's folder"
    )
    rig: str = Field("", description="site of the vendor's test rig, whose recordings train the first model")
    healthy: str = Field("Normal", description="name of the recordings without a fault")
    early: list[str] = Field(["*_7"], description="patterns of the names of early faults, measured by themselves")
    rate_hz: float = Field(12_000.0, gt=0, le=1e9, description="samples in a second that the file must have")
    window: int = Field(1024, ge=256, le=65536, multiple_of=64, description="samples of a window")
    hop: int = Field(256, ge=1, le=65536, description="samples between windows of training that do not cross a link")
    nodes: int = Field(3, ge=1, le=1000, description="nodes of a factory, each with its part in time of all recordings")
    share: float = Field(0.6, gt=0.1, lt=0.95, description="first part of a recording, which trains; the rest tests")
    gap: int = Field(2048, ge=0, description="samples between the two parts that nobody reads")
    validation: bool = Field(
        False, description="cut the first part in the same way again and leave the rest unread, to choose settings"
    )
    activations: Rounding = Field("int4", description="format of activations, with a scale for each token")
    gradients: Rounding = Field("int8", description="train = end_to_end: format of gradients")
    width: int = Field(64, ge=8, le=1024, description="width of the layers behind the encoder; a multiple of heads")
    layers: int = Field(2, ge=1, le=64, description="transformer layers behind the encoder")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    base_steps: int = Field(400, ge=0, le=1_000_000, description="steps on the rig's recordings before round 0")
    base_lr: float = Field(1e-3, gt=0, description="learning rate of these steps (AdamW)")
    base_batch: int = Field(32, ge=1, le=65536, description="windows in each of these steps")
    head_steps: int = Field(200, ge=0, le=1_000_000, description="steps of the nodes' head on the rig, after the base")

    @rule
    def _vibration_heads_divide(self) -> Iterator[SettingError]:
        if self.width % self.heads:
            what = f"vibration.width = {self.width} is no multiple of vibration.heads = {self.heads}"
            yield SettingError("E-VALUE", what, "write width = 64 and heads = 4, or another multiple")

    @rule
    def _encoder_given(self) -> Iterator[SettingError]:
        if self.train == "layers" and not self.encoder:
            what = 'vibration.train = "layers" needs the encoder whose activations the layers read'
            yield SettingError("E-MISSING", what, "name its file in vibration.encoder")
        if self.train != "layers" and self.encoder:
            what = f'vibration.encoder is for train = "layers", and "{self.train}" begins with the encoder of the rig'
            yield SettingError("E-COMBO", what, "leave it out")


def vibration_faults(recipe: Any) -> Iterator[SettingError]:
    """Find the settings of a recipe (``plan.recipe.recipe.Recipe``) that vibration does not go with."""
    if recipe.data.source != SOURCE:
        if recipe.vibration != VibrationSection():
            what = f'the section [vibration] is for data.source = "{SOURCE}"'
            yield SettingError("E-COMBO", what, f'leave it out, or write source = "{SOURCE}" in [data]')
        return
    if not recipe.vibration.rig:
        what = f'data.source = "{SOURCE}" begins with a model of the vendor\'s test rig, and vibration.rig is empty'
        yield SettingError("E-MISSING", what, "name the site of the rig's recordings")
    yield from text_faults(recipe, SOURCE, "recordings", "trains a model of vibration")
    if recipe.dp.example and recipe.vibration.train == "end_to_end":
        what = 'vibration.train = "end_to_end" with dp.unit = "example": gradients that come back are of whole batches'
        yield SettingError("E-COMBO", what, 'write train = "encoder"')
    if recipe.engine.device not in ("auto", "cpu"):
        what = (
            f'engine.device = "{recipe.engine.device}" with data.source = "{SOURCE}": its model has some ten thousand '
        )
        yield SettingError("E-COMBO", what + "parameters, and trains on the CPU", "leave it out")
