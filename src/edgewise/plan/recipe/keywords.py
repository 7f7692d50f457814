"""The [keywords] section of a recipe: keyword spotting (``data.source = "keywords"``), and what it goes with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.data import OWN
from edgewise.plan.recipe.no_text import text_data_faults, text_model_faults
from edgewise.plan.recipe.rules import Section, SettingError, rule

SOURCE = "keywords"  # word of ``data.source``


class KeywordsSection(Section):
    """Keyword spotting: the model, its base, and who holds which clip where the file does not say it."""

    width: int = Field(48, ge=8, le=1024, description="width of the model; a multiple of heads")
    layers: int = Field(2, ge=1, le=64, description="transformer layers")
    heads: int = Field(4, ge=1, le=64, description="attention heads")
    computes: Literal["torch", "numpy"] = Field(
        "torch", description="what trains; numpy is for devices without room for torch, and computes on the CPU only"
    )
    words: list[str] = Field(
        [],
        max_length=1024,
        description="the keywords that the model scores, in order; empty: those of the file, "
        "sorted. `edgewise run submit` writes them for devices",
    )
    positive_weight: float = Field(3.0, gt=0, le=1e6, description="weight in the loss of clips that are the keyword")
    rehearsal: float = Field(0.5, ge=0, lt=1, description="share of each batch of a device that is public clips")
    false_alarms: float = Field(
        0.01, gt=0, lt=1, description="share of other keywords' clips that may pass the threshold of false_negatives"
    )
    base_steps: int = Field(
        800, ge=0, le=1_000_000, description="steps on the public clips before round 0; 0 = an untrained model"
    )
    base_lr: float = Field(1e-3, gt=0, description="learning rate of these steps (AdamW)")
    base_batch: int = Field(32, ge=1, le=65536, description="clips in each of these steps")
    test: int = Field(110, ge=1, description="of a file without owners: clips of each keyword that are for the test")
    public: int = Field(40, ge=1, description="of a file without owners: clips of each keyword that are public")
    clips: int = Field(25, ge=1, description="of a file without owners: clips of a device, all of one keyword")
    noise: bool = Field(False, description="mix stationary coloured noise into all clips, by the seed")
    public_noise_db: float = Field(15.0, ge=-60, le=120, description="signal to noise of public clips")
    device_noise_db: float = Field(5.0, ge=-60, le=120, description="signal to noise of devices' clips and of the test")
    noise_spread_db: float = Field(5.0, ge=0, le=60, description="largest distance of a clip from these ratios")

    @rule
    def _heads_divide(self) -> Iterator[SettingError]:
        if self.width % self.heads:
            what = f"keywords.width = {self.width} is no multiple of keywords.heads = {self.heads}"
            yield SettingError("E-VALUE", what, "write width = 48 and heads = 4, or another multiple")

    @rule
    def _each_word_once(self) -> Iterator[SettingError]:
        if self.words and (len(set(self.words)) < max(2, len(self.words)) or not all(self.words)):
            what = "keywords.words needs at least two keywords, each once and none empty"
            yield SettingError("E-VALUE", what, 'write words = ["alexa", "computer"], or leave it out')


def keyword_faults(recipe: Any) -> Iterator[SettingError]:
    """Find the settings of a recipe (``plan.recipe.recipe.Recipe``) that keyword spotting does not go with."""
    if recipe.data.source == OWN and recipe.keywords.words:
        yield from _text_faults(recipe)
        return
    if recipe.data.source != SOURCE:
        if recipe.keywords != KeywordsSection():
            what = f'the section [keywords] is for data.source = "{SOURCE}"'
            yield SettingError("E-COMBO", what, f'leave it out, or write source = "{SOURCE}" in [data]')
        return
    yield from text_data_faults(recipe, SOURCE, "spectrograms")
    yield from _text_faults(recipe)


def _text_faults(recipe: Any) -> Iterator[SettingError]:
    """Find the settings that need a language model, or torch where there is none."""
    if recipe.keywords.computes == "numpy":
        for key, used in _torch_only(recipe).items():
            if used:
                what = f'{key} needs torch, and keywords.computes = "numpy"'
                yield SettingError("E-COMBO", what, 'leave it out, or write computes = "torch"')
    yield from text_model_faults(recipe, SOURCE, "trains a model that scores keywords")


def _torch_only(recipe: Any) -> dict[str, bool]:
    """List what the trainer without torch lacks, and whether the recipe asks for it."""
    return {
        'dp.unit = "example"': recipe.dp.example,
        'training.optimizer = "muon"': recipe.training.optimizer == "muon",
        'strategy.kind = "zeroth_order"': recipe.strategy.get("kind") == "zeroth_order",
        f'engine.device = "{recipe.engine.device}"': recipe.engine.device not in ("auto", "cpu"),
        "personal.weight = 0": recipe.personal.chooses,
        "[prune]": recipe.prune.active,
    }
