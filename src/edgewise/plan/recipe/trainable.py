"""The section [trainable] of a recipe: the parameters that are trained and travel, and the rule that averages adapters.

TrainableSection(kind="lora", rule="ffa").says        # 'LoRA adapters of rank 8, B only (FFA-LoRA)'
"""

from __future__ import annotations

import math
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
    "fed_sb": ", a matrix between fixed factors only (Fed-SB)",
    "fedex": ", averaged as products (FedEx-LoRA)",
    "flora": ", averaged as products and begun anew each round (FLoRA)",
}


VISIBLE = ("fedex", "flora")  # rules that need single devices' factors, and change the adapted matrices
RANKED = ("ffa", "reffa", "flora")  # rules under which devices may have unequal ranks
WHOLE = ("auto", "fedit", "ffa", "fed_sb")  # rules beside which whole modules may train: all segments travel each round
SHARED_A = ("ffa", "reffa")  # rules under which A is the same on all devices and in all rounds of an adapter


class TrainableSection(Section):
    """The parameters that are trained and travel."""

    kind: Literal["full", "lora", "layers"] = Field(
        "full", description="all; named layers; adapters of low rank (the default with differential privacy)"
    )
    rule: Literal["auto", "fedit", "ffa", "reffa", "rolora", "fed_sb", "fedex", "flora"] = Field(
        "auto",
        description='with kind = "lora": how adapters W + alpha / rank B A become one. auto = chosen by the word of '
        "privacy, as `edgewise check` shows; fedit: mean of A, mean of B; ffa: A is fixed, mean of B (the choice with "
        "differential privacy); reffa: ffa with a new A and a new B, `folds` times in a run; rolora: B and A in turn; "
        "fed_sb: both are fixed, mean of the rank x rank matrix between them; "
        "fedex, flora: the mean of B A, from visible updates, part of it or all of it added to W",
    )
    folds: int = Field(
        4, ge=1, le=64, description="reffa: adapters that are trained one after another, for equally many rounds each"
    )
    rank: int = Field(8, ge=1, le=1024, description="LoRA rank, the largest where devices have unequal ones")
    ranks: dict[str, int] = Field(
        {},
        description="devices of lower rank, which train the first columns of each B only: patterns of device ids, "
        '{"phone-*" = 4}; all others have `rank`; rule = ffa, reffa or flora',
    )
    rank_shares: dict[str, float] = Field(
        {}, description="the same by shares of the devices, dealt out by the seed: rank = share, {4 = 0.75, 16 = 0.25}"
    )
    alpha: float = Field(16.0, gt=0, description="LoRA alpha; the update is scaled by alpha / rank")
    scaling: Literal["rank", "root"] = Field(
        "rank", description="root: the update is scaled by alpha / sqrt(rank) instead, for high ranks (rsLoRA)"
    )
    magnitudes: bool = Field(
        False,
        description="DoRA: also train the length of each row of an adapted matrix, one number an output; "
        "rule = fedit or ffa",
    )
    targets: list[str] = Field(["all-linear"], description="LoRA target modules, by name suffix")
    modules_to_save: list[str] = Field(
        [],
        description="modules that train whole beside the adapters, as peft means it, by name suffix: norm, lm_head; "
        "plain averages; rule = fedit, ffa or fed_sb",
    )
    layers: list[str] = Field([], description='parameter name patterns for kind = "layers", e.g. "model.layers.3.*"')

    last_blocks: int = Field(
        0,
        ge=0,
        le=4096,
        description="train the last so many decoder blocks only, and what follows them: the final norm and a head of "
        "its own; nothing else is in the vector that travels; 0 = all blocks",
    )
    block_shares: dict[str, float] = Field(
        {},
        description="devices that train fewer blocks: last blocks = share of the devices, {2 = 0.75, 6 = 0.25}; the "
        "largest is `last_blocks`; the mean of a block is over the devices that trained it",
    )
    blocks_by: Literal["seed", "memory"] = Field(
        "seed",
        description="which device trains how many blocks: dealt out by the seed in these shares, or each device takes "
        "the most that fit its limit of memory (the shares are then what you expect of the fleet)",
    )

    @property
    def adapts(self) -> bool:
        """True if adapters are trained, alone or beside whole modules."""
        return self.kind == "lora"

    @property
    def scale(self) -> float:
        """The factor of B A in an adapted matrix. Source of ``root``: Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA)."""
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    @property
    def moves_base(self) -> bool:
        """True if the adapted matrices change with the rounds and travel with the model. Devices never train them."""
        return self.rule in VISIBLE

    @property
    def keeps_base(self) -> bool:
        """True if adapters alone are trained, and the base stays as it is in all rounds."""
        return self.adapts and not self.moves_base and not self.modules_to_save

    def trained(self, spec: Spec) -> tuple[Segment, ...]:
        """List the segments that devices train, where others are in the layout that they do not. Empty: all."""
        return tuple(s for s in spec.segments if factor(s.name)) if self.moves_base else ()

    @property
    def turns(self) -> str:
        """The stage that lets parts of the adapters take turns, as a recipe names it. Empty if all train together."""
        return {"rolora": "factors", "reffa": "folds" if self.folds > 1 else ""}.get(self.rule, "")

    @property
    def unequal(self) -> bool:
        """True if devices may have ranks of their own."""
        return bool(self.ranks or self.rank_shares)

    @property
    def shares(self) -> dict[int, float]:
        """The ranks with their shares of all devices, increasing. Empty where patterns of ids decide."""
        return dict(sorted((int(rank), share) for rank, share in self.rank_shares.items()))

    @property
    def levels(self) -> tuple[int, ...]:
        """All ranks that devices may have, increasing."""
        return tuple(sorted({*self.ranks.values(), *self.shares, self.rank}))

    def rank_of(self, device: str, key: keys.Key) -> int:
        """Return the rank of a device. 0 where all have one. ``key``: the run's public key, which deals out shares."""
        if not self.unequal:
            return 0
        if self.ranks:
            return next((rank for wanted, rank in self.ranks.items() if fnmatchcase(device, wanted)), self.rank)
        return _dealt(self.shares, keys.derive(key, "rank", device))

    @property
    def depths(self) -> tuple[int, ...]:
        """The numbers of last blocks that devices may train, increasing. Empty where all train the same."""
        return tuple(sorted(map(int, self.block_shares)))

    @property
    def depth_shares(self) -> dict[int, float]:
        """The share of all devices that train a number of last blocks or more."""
        return {k: sum(s for n, s in self.block_shares.items() if int(n) >= k) for k in self.depths}

    def depth_of(self, device: str, key: keys.Key) -> int:
        """Return the number of last blocks that the seed deals out to a device. 0 where nothing is dealt out."""
        if not self.block_shares or self.blocks_by == "memory":
            return 0
        return _dealt({int(k): s for k, s in self.block_shares.items()}, keys.derive(key, "blocks", device))

    def resolved(self) -> dict[str, Any]:
        """Return the keys with their values, in plain JSON types.

        Keys that nothing reads are left out: ``rule`` without adapters, ``ranks`` and ``rank_shares`` where they are
        empty, ``folds`` with another rule, ``scaling`` and ``magnitudes`` at their defaults, ``modules_to_save`` where
        it is empty, ``last_blocks`` where it is 0, ``block_shares`` and ``blocks_by`` where there are none.
        """
        read = {"rule": self.adapts, "folds": self.rule == "reffa"}
        read |= {"ranks": bool(self.ranks), "rank_shares": bool(self.rank_shares), "scaling": self.scaling != "rank"}
        read |= {"modules_to_save": bool(self.modules_to_save), "magnitudes": self.magnitudes}
        read |= {"last_blocks": self.last_blocks > 0}
        read |= {"block_shares": bool(self.block_shares), "blocks_by": bool(self.block_shares)}
        return {key: value for key, value in self.model_dump(mode="json").items() if read.get(key, True)}

    @property
    def says(self) -> str:
        """The trained parameters in words, for reports and model cards."""
        rank = " or ".join(map(str, self.levels)) if self.unequal else str(self.rank)
        whole = f", and {', '.join(self.modules_to_save)} whole" if self.modules_to_save else ""
        rows = " with magnitudes (DoRA)" if self.magnitudes else ""
        blocks = f" of the last {' or '.join(map(str, self.depths or (self.last_blocks,)))} blocks" * bool(
            self.last_blocks
        )
        return _SAYS[self.kind].format(rank=rank) + rows + blocks + _RULES[self.rule].format(folds=self.folds) + whole

    @checked
    def _layers_named(self) -> Iterator[SettingError]:
        if (self.kind == "layers") != bool(self.layers):
            what = 'trainable.layers goes with trainable.kind = "layers", and only with it'
            fix = "name layers" if self.kind == "layers" else 'write kind = "layers", or leave out trainable.layers'
            yield SettingError("E-COMBO", what, fix)

    @checked
    def _blocks_dealt(self) -> Iterator[SettingError]:
        if self.last_blocks and self.kind == "layers":
            what = 'trainable.last_blocks and trainable.kind = "layers" both say what trains'
            yield SettingError("E-COMBO", what, 'write kind = "full" or "lora", or leave out last_blocks')
        if not self.block_shares:
            if self.blocks_by != "seed":
                what = f'trainable.blocks_by = "{self.blocks_by}" without trainable.block_shares'
                yield SettingError("E-COMBO", what, "give block_shares, or leave blocks_by out")
            return
        if words := [k for k in self.block_shares if not k.isdecimal() or int(k) < 1]:
            what = f"trainable.block_shares has the key {words[0]!r:.40}, which is no number of blocks"
            yield SettingError("E-VALUE", what, "write blocks = share, as in {2 = 0.75, 6 = 0.25}")
            return
        shares = self.block_shares.values()
        if min(shares) <= 0.0 or abs(sum(shares) - 1.0) > 1e-9:
            what = f"trainable.block_shares are {sum(shares):g} together"
            yield SettingError("E-VALUE", what, "give shares above 0 that make 1")
        elif len(self.depths) < 2 or self.depths[-1] != self.last_blocks:
            what = f"trainable.block_shares names {', '.join(map(str, self.depths))} blocks"
            fix = f"name two or more, the largest of which is last_blocks = {self.last_blocks or self.depths[-1]}"
            yield SettingError("E-VALUE", what, fix)
        if self.unequal or self.rule not in ("auto", *WHOLE):
            what = "trainable.block_shares gives each block a mean of its own, and "
            what += "unequal ranks do" if self.unequal else f'the parts of trainable.rule = "{self.rule}" do'
            yield SettingError(
                "E-COMBO", f"{what} the same with columns or rounds", f"take one of both, or rule = {WHOLE[1]!r}"
            )

    @checked
    def _ranks_held(self) -> Iterator[SettingError]:
        if not self.unequal:
            return
        if self.ranks and self.rank_shares:
            what = "trainable.ranks and trainable.rank_shares both say which device has which rank"
            yield SettingError("E-COMBO", what, "give one of them")
        if self.rule not in ("auto", *RANKED):
            what = (
                "devices of unequal rank need one A on all of them, or products of both factors, and trainable.rule = "
            )
            what += f'"{self.rule}" has neither'
            yield SettingError("E-COMBO", what, f"write rule = {' or '.join(map(repr, RANKED))}".replace("'", '"'))
        if words := [rank for rank in self.rank_shares if not rank.isdecimal()]:
            what = f"trainable.rank_shares has the key {words[0]!r:.40}, which is no rank"
            yield SettingError("E-VALUE", what, "write rank = share, as in {4 = 0.75, 16 = 0.25}")
            return
        if wrong := [rank for rank in (*self.ranks.values(), *self.shares) if not 1 <= rank <= self.rank]:
            key = "ranks" if self.ranks else "rank_shares"
            what = f"trainable.{key} holds {wrong[0]}, and trainable.rank = {self.rank} is the largest"
            yield SettingError("E-VALUE", what, "raise trainable.rank, or lower that one")
        shares = self.shares
        if shares and (min(shares.values()) <= 0.0 or abs(sum(shares.values()) - 1.0) > 1e-9):
            what = f"trainable.rank_shares are {sum(shares.values()):g} together"
            yield SettingError("E-VALUE", what, "give shares above 0 that make 1")
        elif shares and self.rank not in shares:
            what = f"trainable.rank_shares gives no device trainable.rank = {self.rank}"
            yield SettingError("E-VALUE", what, "lower trainable.rank to the largest of them, or give it a share")

    @checked
    def _folds_read(self) -> Iterator[SettingError]:
        if self.rule != "reffa" and self.folds != type(self).model_fields["folds"].default:
            what = f'trainable.folds is of rule = "reffa", and trainable.rule = "{self.rule}" has one adapter'
            yield SettingError("E-COMBO", what, 'leave it out, or write rule = "reffa"')

    @checked
    def _modules_averaged(self) -> Iterator[SettingError]:
        if self.modules_to_save and self.rule not in WHOLE:
            what = f'trainable.modules_to_save cannot be used with trainable.rule = "{self.rule}": its rounds carry '
            what += "factors of adapters alone, in turn or as products"
            yield SettingError("E-COMBO", what, 'write rule = "fedit", "ffa" or "fed_sb", or leave the modules out')
        if self.modules_to_save and self.kind != "lora":
            what = f'trainable.modules_to_save trains beside adapters, and trainable.kind = "{self.kind}" has none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or kind = "layers" with trainable.layers')

    @checked
    def _magnitudes_averaged(self) -> Iterator[SettingError]:
        if self.magnitudes and (self.kind != "lora" or self.rule not in ("auto", "fedit", "ffa")):
            what = "trainable.magnitudes (DoRA) trains lengths of rows beside the factors of adapters in every round, "
            what += f'and kind = "{self.kind}", rule = "{self.rule}" does not'
            yield SettingError("E-COMBO", what, 'write kind = "lora" and rule = "fedit" or "ffa", or leave it out')

    @checked
    def _rule_of_adapters(self) -> Iterator[SettingError]:
        if self.unequal and self.kind != "lora":
            what = f'ranks of devices are of adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.ranks and rank_shares')
        if self.scaling != "rank" and self.kind != "lora":
            what = f'trainable.scaling is of adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.scaling')
        if self.rule != "auto" and self.kind != "lora":
            what = f'trainable.rule = "{self.rule}" averages adapters, and trainable.kind = "{self.kind}" trains none'
            yield SettingError("E-COMBO", what, 'write kind = "lora", or leave out trainable.rule')


def _dealt(shares: dict[int, float], key: keys.Key) -> int:
    """Deal out one of the numbers by their shares, from the smallest."""
    lot, stop = keys.word(key) / 2**63, 0.0
    for number, share in sorted(shares.items()):
        stop += share
        if lot < stop:
            return number
    return max(shares)
