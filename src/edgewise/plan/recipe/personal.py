"""Section of a recipe on personal models: each device goes on from the federated model, for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule

PRIVATE = ("ditto",)  # methods with a part that a device keeps between rounds


class PersonalSection(Section):
    """Personal models. Each device makes one of the federated model and its own text, and sends none of it.

    ``fine_tune``: v = w after ``steps`` further steps on the device's own text. ``interpolate``: the personal model is
    w + weight (v - w). ``ditto``: v trains beside every round of the device, pulled to the round's model by ``pull``.
    """

    method: Literal["none", "fine_tune", "interpolate", "ditto"] = Field(
        "none",
        description="how a device makes its personal model: further steps after the rounds (fine_tune), a mix of such "
        "a model and the federated one (interpolate), or a model of its own that trains beside the rounds (ditto)",
    )
    steps: int = Field(
        10, ge=0, description="further optimizer steps of a device, with ditto in each of its rounds; 0: give epochs"
    )
    epochs: float = Field(0.0, ge=0, le=1e6, description="passes over its own blocks, in place of steps; 0 = steps")
    lr: float = Field(5e-4, gt=0, description="learning rate of the further steps")
    weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="interpolate: share of the device's own model in the mix; 0 = each device chooses it by the last "
        "fifth of its training text, for which it takes the steps twice",
    )
    pull: float = Field(
        0.5, ge=0, le=100, description="ditto: lambda, by which its own model is pulled to the federated"
    )
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

    @property
    def chooses(self) -> bool:
        """True if each device chooses the share of its own model."""
        return self.method == "interpolate" and not self.weight

    @property
    def further_steps(self) -> int:
        """The steps of a device after the rounds. 0 with ditto, which trains beside them, and where epochs are given.

        A device that chooses the share takes ``steps`` twice.
        """
        if self.method in ("none", *PRIVATE):
            return 0
        return 2 * self.steps if self.chooses else self.steps

    @rule
    def _one_length(self) -> Iterator[SettingError]:
        if bool(self.steps) == bool(self.epochs):
            what = "personal.steps and personal.epochs: exactly one of them says how long a device goes on"
            yield SettingError("E-COMBO", what, "give one, and leave out the other")

    @rule
    def _method_given(self) -> Iterator[SettingError]:
        if self.method == "none" and any(
            self._is_given(key) for key in ("steps", "epochs", "lr", "weight", "pull", "keep_mb")
        ):
            what = 'the section [personal] makes no model with personal.method = "none"'
            yield SettingError("E-COMBO", what, 'write method = "fine_tune", or leave the section out')

    @rule
    def _weight_read(self) -> Iterator[SettingError]:
        if self.method not in ("none", "interpolate") and self._is_given("weight"):
            what = f'personal.weight is not read with personal.method = "{self.method}"'
            yield SettingError("E-COMBO", what, 'leave it out, or write method = "interpolate"')

    @rule
    def _pull_read(self) -> Iterator[SettingError]:
        if self.method not in ("none", "ditto") and self._is_given("pull"):
            what = f'personal.pull is not read with personal.method = "{self.method}"'
            yield SettingError("E-COMBO", what, 'leave it out, or write method = "ditto"')

    def _is_given(self, key: str) -> bool:
        """Tell whether a key differs from its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def private_faults(
    personal: PersonalSection, codec: str, privacy: str, strategy: Mapping[str, Any]
) -> Iterator[SettingError]:
    """Find settings of a recipe with which a device cannot keep a private part."""
    if personal.method not in PRIVATE:
        return
    if codec == "adaptive" and privacy == "hidden":
        what = f'personal.method = "{personal.method}" with codec = "adaptive" behind masks: a device encodes when the '
        what += "round has gone on, and its private part would have to wait with the update"
        yield SettingError("E-COMBO", what, 'write codec = "stages", or personal.method = "interpolate"')
    if strategy.get("kind") == "zeroth_order":
        what = (
            f'personal.method = "{personal.method}" with [strategy] zeroth_order: the run\'s vector holds coefficients '
        )
        what += "of directions, and no model of a device's own"
        yield SettingError("E-COMBO", what, 'write personal.method = "fine_tune", or another strategy')
