"""The section [trainable] of a recipe: the parameters that are trained and travel, and the rule that averages adapters.

TrainableSection(kind="lora", rule="ffa").says        # 'LoRA adapters of rank 8, B only (FFA-LoRA)'
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import Field

from edgewise.core import keys
from edgewise.core.factors import factor
from edgewise.core.vector import Segment, Spec
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
    "reffa": ", B only, {folds} times anew (ReFFA)",
    "rolora": ", B and A in turn (RoLoRA)",
    "fedex": ", averaged as products (FedEx-LoRA)",
    "flora": ", averaged as products and begun anew each round (FLoRA)",
}


VISIBLE = ("fedex", "flora")  # rules that need single devices' factors, and change the adapted matrices
RANKED = ("ffa", "reffa", "flora")  # rules under which devices may have unequal ranks
SHARED_A = ("ffa", "reffa")  # rules under which A is the same on all devices and in all rounds of an adapter
_SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%")  # 75 %


class TrainableSection(Section):
    """The parameters that are trained and travel."""

    kind: Literal["full", "lora", "layers"] = Field(
        "full", description="all; named layers; adapters of low rank (the default with differential privacy)"
    )
    rule: Literal["auto", "fedit", "ffa", "reffa", "rolora", "fedex", "flora"] = Field(
        "auto",
        description='with kind = "lora": how adapters W + alpha / rank B A become one. auto = chosen by the word of '
        "privacy, as `edgewise check` shows; fedit: mean of A, mean of B; ffa: A is fixed, mean of B (the choice with "
        "differential privacy); reffa: ffa with a new A and a new B, `folds` times in a run; rolora: B and A in turn; "
        "fedex, flora: the mean of B A, from visible updates, part of it or all of it added to W",
    )
    folds: int = Field(
        4, ge=1, le=64, description="reffa: adapters that are trained one after another, for equally many rounds each"
    )
    rank: int = Field(8, ge=1, le=1024, description="LoRA rank, the largest where devices have unequal ones")
    ranks: dict[str, int] = Field(
        {},
        description="devices of lower rank, which train the first columns of each B only: patterns of device ids, "
        '{"phone-*" = 4}, where all others have `rank`; or shares of the devices, {"75 %" = 4, "25 %" = 16}, dealt out '
        "by the seed; rule = ffa, reffa or flora",
    )
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    targets: list[str] = Field(["all-linear"], description="LoRA target modules, by name suffix")
    layers: list[str] = Field([], description='parameter name patterns for kind = "layers", e.g. "model.layers.3.*"')

    @property
    def adapts(self) -> bool:
        """True if adapters are trained, and nothing of the model itself."""
        return self.kind == "lora"

    @property
    def moves_base(self) -> bool:
        """True if the adapted matrices change with the rounds and travel with the model. Devices never train them."""
        return self.rule in VISIBLE

    @property
    def keeps_base(self) -> bool:
        """True if adapters are trained and the base stays as it is in all rounds."""
        return self.adapts and not self.moves_base

    def trained(self, spec: Spec) -> tuple[Segment, ...]:
        """List the segments that devices train, where others are in the layout that they do not. Empty: all."""
        return tuple(s for s in spec.segments if factor(s.name)) if self.moves_base else ()

    @property
    def turns(self) -> str:
        """The stage that lets parts of the adapters take turns, as a recipe names it. Empty if all train together."""
        return {"rolora": "factors", "reffa": "folds" if self.folds > 1 else ""}.get(self.rule, "")

    @property
    def shares(self) -> dict[int, float]:
        """The ranks with their shares of all devices, increasing. Empty where ``ranks`` gives none."""
        found: dict[int, float] = {}
        for text, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            if share := _SHARE.fullmatch(text):
                found[rank] = found.get(rank, 0.0) + float(share[1]) / 100
        return found

    @property
    def levels(self) -> tuple[int, ...]:
        """All ranks that devices may have, increasing."""
        return tuple(sorted({*self.ranks.values(), self.rank}))

    def rank_of(self, device: str, key: keys.Key) -> int:
        """Return the rank of a device. 0 where all have one. ``key``: the run's public key, which deals out shares."""
        if not self.ranks:
            return 0
        if not (shares := self.shares):
            return next((rank for wanted, rank in self.ranks.items() if fnmatchcase(device, wanted)), self.rank)
        lot, stop = keys.word(keys.derive(key, "rank", device)) / 2**63, 0.0
        for rank, share in shares.items():
            stop += share
            if lot < stop:
                return rank
        return self.rank

    def resolved(self) -> dict[str, Any]:
        """Return the keys with their values, in plain JSON types.

        Keys that nothing reads are left out: ``rule`` without adapters, ``ranks`` where all devices have one, ``folds``
        with another rule.
        """
        read = {"rule": self.adapts, "ranks": bool(self.ranks), "folds": self.rule == "reffa"}
        return {key: value for key, value in self.model_dump(mode="json").items() if read.get(key, True)}

    @property
    def says(self) -> str:
        """The trained parameters in words, for reports and model cards."""
        rank = " or ".join(map(str, self.levels)) if self.ranks else str(self.rank)
        return _SAYS[self.kind].format(rank=rank) + _RULES[self.rule].format(folds=self.folds)

    @checked
    def _layers_named(self) -> Iterator[SettingError]:
        if (self.kind == "layers") != bool(self.layers):
            what = 'trainable.layers goes with trainable.kind = "layers", and only with it'
            fix = "name layers" if self.kind == "layers" else 'write kind = "layers", or leave out trainable.layers'
            yield SettingError("E-COMBO", what, fix)

    @checked
    def _ranks_held(self) -> Iterator[SettingError]:
        if not self.ranks:
            return
        if self.rule not in ("auto", *RANKED):
            what = "trainable.ranks needs one A on all devices, or products of both factors, and trainable.rule = "
            what += f'"{self.rule}" has neither'
            yield SettingError("E-COMBO", what, f"write rule = {' or '.join(map(repr, RANKED))}".replace("'", '"'))
        wrong = [rank for rank in self.ranks.values() if not 1 <= rank <= self.rank]
        if wrong:
            what = f"trainable.ranks holds {wrong[0]}, and trainable.rank = {self.rank} is the largest"
            yield SettingError("E-VALUE", what, "raise trainable.rank, or lower that one")
        shares = [bool(_SHARE.fullmatch(text)) for text in self.ranks]
        if any(shares) and not all(shares):
            yield SettingError("E-VALUE", "trainable.ranks mixes shares and patterns of device ids", "give one of them")
        elif all(shares) and (abs(sum(self.shares.values()) - 1.0) > 1e-9 or self.rank not in self.shares):
            what = f"the shares of trainable.ranks are {100 * sum(self.shares.values()):g} % together"
            if self.rank not in self.shares:
                what = f"trainable.ranks gives no share of devices with trainable.rank = {self.rank}"
            yield SettingError("E-VALUE", what, f"they make 100 %, with some devices of rank {self.rank}")

    @checked
    def _folds_read(self) -> Iterator[SettingError]:
        if self.rule != "reffa" and self.folds != type(self).model_fields["folds"].default:
            what = f'trainable.folds is of rule = "reffa", and trainable.rule = "{self.rule}" has one adapter'
            yield SettingError("E-COMBO", what, 'leave it out, or write rule = "reffa"')

    @checked
    def _rule_of_adapters(self) -> Iterator[SettingError]:
        if self.ranks and self.kind != "lora":
            what = f'trainable.ranks is of adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.ranks')
        if self.rule != "auto" and self.kind != "lora":
            what = f'trainable.rule = "{self.rule}" averages adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.rule')
