"""The section [trainable] of a recipe: the parameters that are trained and travel, and the rule that averages adapters.

TrainableSection(kind="lora", rule="ffa").says        # 'LoRA adapters of rank 8, B only (FFA-LoRA)'
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError
from edgewise.plan.recipe.rules import rule as checked

# Kinds of earlier versions, and what a recipe says instead.
RENAMED_KINDS = {
    "ffa_lora": 'kind = "lora" and rule = "ffa"',
    "rolora": 'kind = "lora" and rule = "rolora"',
}

_SAYS = {"full": "all parameters", "layers": "some layers", "lora": "LoRA adapters of rank {rank}"}
_RULES = {
    "auto": "",
    "fedit": "",
    "ffa": ", B only (FFA-LoRA)",
    "rolora": ", B and A in turn (RoLoRA)",
}


class TrainableSection(Section):
    """The parameters that are trained and travel."""

    kind: Literal["full", "lora", "layers"] = Field(
        "full", description="all; named layers; adapters of low rank (the default with differential privacy)"
    )
    rule: Literal["auto", "fedit", "ffa", "rolora"] = Field(
        "auto",
        description='with kind = "lora": how adapters W + alpha / rank B A become one. auto = chosen by the word of '
        "privacy, as `edgewise check` shows; fedit: mean of A, mean of B; ffa: A is fixed, mean of B (the choice with "
        "differential privacy); rolora: B and A in turn",
    )
    rank: int = Field(8, ge=1, le=1024, description="LoRA rank")
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    targets: list[str] = Field(["all-linear"], description="LoRA target modules, by name suffix")
    layers: list[str] = Field([], description='parameter name patterns for kind = "layers", e.g. "model.layers.3.*"')

    @property
    def adapts(self) -> bool:
        """True if adapters are trained, and nothing of the model itself."""
        return self.kind == "lora"

    @property
    def turns(self) -> str:
        """The stage that lets parts of the adapters take turns, as a recipe names it. Empty if all train together."""
        return "factors" if self.rule == "rolora" else ""

    def resolved(self) -> dict[str, Any]:
        """Return the keys with their values, in plain JSON types. ``rule`` is left out where no adapters are."""
        plain = self.model_dump(mode="json")
        return plain if self.adapts else {key: value for key, value in plain.items() if key != "rule"}

    @property
    def says(self) -> str:
        """The trained parameters in words, for reports and model cards."""
        return _SAYS[self.kind].format(rank=self.rank) + _RULES[self.rule]

    @checked
    def _layers_named(self) -> Iterator[SettingError]:
        if (self.kind == "layers") != bool(self.layers):
            what = 'trainable.layers goes with trainable.kind = "layers", and only with it'
            fix = "name layers" if self.kind == "layers" else 'write kind = "layers", or leave out trainable.layers'
            yield SettingError("E-COMBO", what, fix)

    @checked
    def _rule_of_adapters(self) -> Iterator[SettingError]:
        if self.rule != "auto" and self.kind != "lora":
            what = f'trainable.rule = "{self.rule}" averages adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.rule')
