"""Section of a recipe on personal models: each device goes on from the federated model, for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule
from edgewise.plan.recipe.trainable import TrainableSection

LAYERED = ("fedper", "fedrep")  # methods with layers of the model that stay on their device
PARTED = (*LAYERED, "dual")  # methods with a part of the trained vector that stays on its device
PRIVATE = ("ditto", *PARTED)  # methods with something that a device keeps between rounds
BESIDE = ("ditto", "fedrep", "dual")  # methods with steps of a device for itself in each of its rounds
IN_TURN = ("reffa", "rolora")  # rules of adapters that train some of their factors in a round


class PersonalSection(Section):
    """Personal models. Each device makes one of the federated model and its own text, and sends none of it.

    ``fine_tune``: v = w after ``steps`` further steps on the device's own text. ``interpolate``: the personal model is
    w + weight (v - w). ``ditto``: v trains beside every round of the device, pulled to the round's model by ``pull``.
    ``fedper``, ``fedrep``: a part of the model stays on the device in all rounds, and the rest travels. ``dual``: a
    second adapter stays on the device, and both are active (``learn.models.gated``).
    """

    method: Literal["none", "fine_tune", "interpolate", "ditto", "fedper", "fedrep", "dual"] = Field(
        "none",
        description="how a device makes its personal model: further steps after the rounds (fine_tune), a mix of such "
        "a model and the federated one (interpolate), a model of its own that trains beside the rounds (ditto), a part "
        "of the model that stays on the device and trains with the rest (fedper) or before it (fedrep), or an adapter "
        "of its own beside the shared one (dual)",
    )
    steps: int = Field(
        10,
        ge=0,
        description="further optimizer steps of a device, with ditto in each of its rounds; 0: give epochs. fedper: "
        "steps of its own part after the rounds, 0 = none; fedrep, dual: in each of its rounds and after them",
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
    blocks: int = Field(
        1,
        ge=0,
        description="fedper, fedrep: the last so many blocks stay on the device, with what follows them (the final "
        "norm, and a head of its own); 0 = only what follows",
    )
    parts: list[str] = Field(
        [],
        description="fedper, fedrep: patterns of parameter names that stay on the device, in place of blocks, e.g. "
        '["lm_head.*"]',
    )
    gate: Literal["token", "none"] = Field(
        "token",
        description="dual: a trained gate at each adapted layer lets each token choose how much of the own adapter "
        "counts, or the sum is plain (none)",
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
    def own_adapter(self) -> str | None:
        """The gate of the device's own adapter. None where it has none."""
        return self.gate if self.method == "dual" else None

    @property
    def stays(self) -> str | None:
        """Name what a device keeps for itself between rounds. None where it keeps nothing."""
        if self.method == "ditto":
            return "a model of its own"
        if self.method == "dual":
            return "an adapter of its own"
        if self.method not in PARTED:
            return None
        if self.parts:
            return f"the part of the model that {', '.join(self.parts)} names"
        last = f"the last {self.blocks} block{'s' * (self.blocks != 1)} of the model with " if self.blocks else ""
        return f"{last}what follows the last block"

    @property
    def chooses(self) -> bool:
        """True if each device chooses the share of its own model."""
        return self.method == "interpolate" and not self.weight

    def further_steps(self, counted: float = 0.0) -> float:
        """Return the steps of a device after the rounds. 0 with ditto, which trains beside them.

        A device that chooses the share takes them twice.

        Args:
            counted: the steps of ``epochs``, where they are given. 0 = unknown.
        """
        if self.method in ("none", "ditto"):
            return 0
        return (self.steps or counted) * (2 if self.chooses else 1)

    def beside_steps(self, counted: float = 0.0) -> float:
        """Return the steps of a device for itself in each of its rounds. ``counted`` is that of ``further_steps``."""
        return (self.steps or counted) if self.method in BESIDE else 0

    @rule
    def _one_length(self) -> Iterator[SettingError]:
        if not self.steps and not self.epochs and self.method == "fedper":
            return  # The own part is then as the last round left it.
        if bool(self.steps) == bool(self.epochs):
            what = "personal.steps and personal.epochs: exactly one of them says how long a device goes on"
            yield SettingError("E-COMBO", what, "give one, and leave out the other")

    @rule
    def _method_given(self) -> Iterator[SettingError]:
        if self.method == "none" and any(
            self._is_given(key)
            for key in ("steps", "epochs", "lr", "weight", "pull", "blocks", "parts", "gate", "keep_mb")
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

    @rule
    def _parts_read(self) -> Iterator[SettingError]:
        if self.method not in ("none", *LAYERED) and (self._is_given("blocks") or self.parts):
            what = f'personal.blocks and personal.parts are not read with personal.method = "{self.method}"'
            yield SettingError("E-COMBO", what, 'leave them out, or write method = "fedper" or "fedrep"')
        elif self.parts and self._is_given("blocks"):
            what = "personal.blocks and personal.parts both say what stays on the device"
            yield SettingError("E-COMBO", what, "give one of them")

    @rule
    def _gate_read(self) -> Iterator[SettingError]:
        if self.method not in ("none", "dual") and self._is_given("gate"):
            what = f'personal.gate is not read with personal.method = "{self.method}"'
            yield SettingError("E-COMBO", what, 'leave it out, or write method = "dual"')

    def _is_given(self, key: str) -> bool:
        """Tell whether a key differs from its default."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)


def private_faults(
    personal: PersonalSection,
    codec: str,
    privacy: str,
    strategy: Mapping[str, Any],
    trainable: TrainableSection,
    *,
    of_records: bool,
    chooses: bool,
    together: int,
) -> Iterator[SettingError]:
    """Find settings of a recipe with which a device cannot keep a private part.

    Args:
        of_records: differential privacy is about single records.
        chooses: held-out text chooses the round whose model counts.
        together: devices that train in one pass.
    """
    if personal.method not in PRIVATE:
        return
    given = f'personal.method = "{personal.method}"'
    if codec == "adaptive" and privacy == "hidden":
        what = f'{given} with codec = "adaptive" behind masks: a device encodes when the '
        what += "round has gone on, and its private part would have to wait with the update"
        yield SettingError("E-COMBO", what, 'write codec = "stages", or personal.method = "interpolate"')
    if strategy.get("kind") == "zeroth_order":
        what = f"{given} with [strategy] zeroth_order: the run's vector holds coefficients "
        what += "of directions, and no model of a device's own"
        yield SettingError("E-COMBO", what, 'write personal.method = "fine_tune", or another strategy')
    if personal.method not in PARTED:
        return
    if personal.method == "dual" and (trainable.rule not in ("fedit", "ffa") or trainable.unequal):
        what = f'{given} puts a second adapter beside the shared one of trainable.kind = "lora" with rule = "fedit" or '
        what += '"ffa" and one rank on all devices, and this recipe trains otherwise'
        yield SettingError("E-COMBO", what, 'write these, or personal.method = "fedrep"')
        return
    if of_records:
        what = f'{given} with dp.unit = "example": the part that stays depends on each record without noise, and the '
        what += "gradients of all later steps depend on that part, which no epsilon counts"
        yield SettingError("E-COMBO", what, 'write dp.unit = "device", or personal.method = "fine_tune"')
    if trainable.adapts and (trainable.rule in IN_TURN or trainable.moves_base):
        what = f'{given} with trainable.rule = "{trainable.rule}": the rule treats the factors of all layers as one '
        what += "adapter, and a part of it would stay behind"
        yield SettingError("E-COMBO", what, 'write rule = "fedit", "ffa" or "fed_sb"')
    if chooses:
        what = f'{given} with round.patience or round.keep = "best": the choice is made by a model with the own part '
        what += "of the seed, which no device uses"
        yield SettingError("E-COMBO", what, "leave both out")
    if together > 1:
        what = f"{given} with engine.batch_devices = {together}: devices with parts of their own train one by one"
        yield SettingError("E-COMBO", what, "write engine.batch_devices = 1")
    if personal.method == "fedper" and strategy.get("kind") in ("fedprox", "feddyn"):
        what = f'{given} with [strategy] "{strategy["kind"]}": its pull to the model of the round would hold back the '
        what += "part that stays on the device, too"
        yield SettingError("E-COMBO", what, 'write personal.method = "fedrep", or another strategy')
