"""The [distill] section of a recipe: the server distils the model again, every few rounds, from a teacher on public
text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.personal import PersonalSection
from edgewise.plan.recipe.rules import Section, SettingError, rule
from edgewise.plan.recipe.trainable import TrainableSection

REAL = 0.2  # Least weight of real text. Models that learn from each other alone drift to what both make up.
STATEFUL = {  # strategies with a state that describes the model which a distillation replaces
    "scaffold": "control variates",
    "feddyn": "a correction for each device",
    "moon": "the last model of each device",
    "zeroth_order": "seeds from which devices make the model",
}


class DistillSection(Section):
    """Distillation of the released model on the server, between rounds. It reads public text and no device's data."""

    every: int = Field(
        0, ge=0, description="rounds from one distillation to the next; 0 = none. It follows the step of the server"
    )
    teacher: str = Field(
        "",
        description='the teacher: "bundled", "hub:owner/name@revision", or a folder relative to the recipe (on a '
        "server: relative to its folder `distill`). It has the model's tokenizer",
    )
    public: str = Field(
        "",
        description='the text that both learn: "plays-public", "python-stdlib", or a file or folder, placed as '
        "`teacher` is. It must be public, because no epsilon covers it; its last tenth is held out",
    )
    column: str = Field("text", description="column of a table that holds the public text")
    max_tokens: int = Field(0, ge=0, description="tokens of public text at most; 0 = all")
    steps: int = Field(100, ge=1, le=1_000_000, description="steps of the student in each distillation")
    adapt: int = Field(
        50, ge=0, le=1_000_000, description="steps in which the teacher first learns the public text and the student"
    )
    batch: int = Field(8, ge=1, le=4096, description="blocks of data.sequence_len tokens in a step")
    lr: float = Field(5e-4, gt=0, le=1, description="the student's largest learning rate")
    adapt_lr: float = Field(2e-4, gt=0, le=1, description="the teacher's largest learning rate")
    loss: Literal["logits", "jsd", "gkd", "sequence", "top_k"] = Field(
        "logits", description="as `edgewise distill --loss`"
    )
    tau: float = Field(2.0, gt=0, le=100, description="temperature of the logits")
    beta: float = Field(0.5, ge=0, le=1, description="of the Jensen-Shannon divergence (jsd, gkd)")
    top_k: int = Field(32, ge=1, description="the teacher's tokens that count (top_k)")
    data: float = Field(0.5, ge=REAL, le=1, description="weight of the real next tokens, in a step on real text")
    generated: float = Field(0.5, ge=0, le=1 - REAL, description="share of the steps on generated text (gkd, sequence)")
    diversity: float = Field(
        0.9,
        ge=0,
        le=1,
        description="a distilled model is rejected where the diversity of its writing falls below this share of that "
        "before. It is also rejected where its perplexity on held-out public text does not fall",
    )
    held_tokens: int = Field(8192, ge=64, description="held-out tokens of public text that decide, at most")

    @property
    def says(self) -> str | None:
        """Say what the distillations read, and what they cost in privacy. None where there is none."""
        if not self.active:
            return None
        often = "after each round" if self.every == 1 else f"every {self.every} rounds"
        return (
            f"{often} the server distils the released model again from {self.teacher} on {self.public}, which must be "
            "public: that is post-processing of released models and reads no data of devices, and no epsilon covers "
            "that text"
        )

    @property
    def active(self) -> bool:
        """True if the server distils the model again."""
        return self.every > 0

    def due(self, round: int) -> bool:
        """Tell whether a distillation follows this round."""
        return self.active and (round + 1) % self.every == 0

    @rule
    def _distillation_complete(self) -> Iterator[SettingError]:
        changed = any(getattr(self, name) != field.default for name, field in type(self).model_fields.items())
        if not self.active and changed:
            what = "distill.every = 0 leaves the model as it is, and the section [distill] gives other keys"
            yield SettingError("E-COMBO", what, "give distill.every, or leave the section out")
        for key, wanted in (("teacher", "a model"), ("public", "public text")):
            if self.active and not getattr(self, key):
                what = f"distill.{key} is required: a distillation needs {wanted}"
                yield SettingError("E-MISSING", what, f"name it in distill.{key}")


def distill_faults(
    distill: DistillSection, strategy: Mapping[str, Any], trainable: TrainableSection, personal: PersonalSection,
    rounds: int, split: bool,
) -> Iterator[SettingError]:  # fmt: skip
    """Find the settings that a distillation between rounds does not go with."""
    if not distill.active:
        return
    if (state := STATEFUL.get(kind := str(strategy.get("kind")))) is not None:
        what = f'distill.every with strategy = "{kind}": it keeps {state}, made for the model that a distillation'
        yield SettingError("E-COMBO", f"{what} replaces", 'take strategy = "fedavg" or "fedopt"')
    if trainable.moves_base:
        what = f'distill.every with trainable.rule = "{trainable.rule}", which adds products of factors to the base: a'
        fix = 'write rule = "ffa", "reffa" or "fedit", or trainable.kind = "full"'
        yield SettingError("E-COMBO", f"{what} distillation would move the base itself", fix)
    if personal.stays is not None and personal.method != "ditto":
        what = f'distill.every with personal.method = "{personal.method}": {personal.stays} stays on each device, so'
        yield SettingError("E-COMBO", f"{what} the server has no whole model to distil", "leave one of them out")
    if split:
        what = "distill.every with [split]: the server's vector is the part before the cut, which is no whole model"
        yield SettingError("E-COMBO", what, "leave one of the sections out")
    if distill.every > rounds:
        what = f"distill.every = {distill.every} is more than the {rounds} rounds of the run"
        yield SettingError("E-COMBO", what, "lower distill.every, or leave the section out")
