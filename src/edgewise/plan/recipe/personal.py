"""Section of a recipe on personal models: each device goes on from the federated model, for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule


class PersonalSection(Section):
    """Personal models. Each device makes one of the federated model and its own text, and sends none of it.

    ``fine_tune``: v = w after ``steps`` further steps on the device's own text. ``interpolate``: the personal model is
    w + weight (v - w).
    """

    method: Literal["none", "fine_tune", "interpolate"] = Field(
        "none",
        description="how a device makes its personal model after the rounds: further steps of its own, or a mix of "
        "such a model and the federated one",
    )
    steps: int = Field(10, ge=0, description="further optimizer steps of a device; 0 where epochs are given")
    epochs: float = Field(0.0, ge=0, le=1e6, description="passes over its own blocks, in place of steps; 0 = steps")
    lr: float = Field(5e-4, gt=0, description="learning rate of the further steps")
    weight: float = Field(0.5, gt=0, le=1, description="interpolate: share of the device's own model in the mix")
    keep_mb: float = Field(
        500.0, ge=0, le=1e9, description="room for personal models in a simulated run's folder, 10^6 bytes; 0 = none"
    )

    @classmethod
    def completed(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Set the steps to 0 where epochs are given, since steps have a default."""
        if plain.get("epochs") and "steps" not in plain:
            return {**plain, "steps": 0}
        return plain

    @property
    def mix(self) -> float:
        """The share of the device's own model in its personal model."""
        return self.weight if self.method == "interpolate" else 1.0

    @rule
    def _one_length(self) -> Iterator[SettingError]:
        if bool(self.steps) == bool(self.epochs):
            what = "personal.steps and personal.epochs: exactly one of them says how long a device goes on"
            yield SettingError("E-COMBO", what, "give one, and leave out the other")

    @rule
    def _method_given(self) -> Iterator[SettingError]:
        if self.method == "none" and any(self._given(key) for key in ("steps", "epochs", "lr", "weight", "keep_mb")):
            what = 'the section [personal] makes no model with personal.method = "none"'
            yield SettingError("E-COMBO", what, 'write method = "fine_tune", or leave the section out')

    @rule
    def _weight_read(self) -> Iterator[SettingError]:
        if self.method not in ("none", "interpolate") and self._given("weight"):
            what = f'personal.weight is not read with personal.method = "{self.method}"'
            yield SettingError("E-COMBO", what, 'leave it out, or write method = "interpolate"')

    def _given(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)
