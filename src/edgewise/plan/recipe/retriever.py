"""The [retriever] section of a recipe: devices train the model to find passages, on pairs from their own documents.

    [retriever]
    pairs = "turns"    # a line asks for the next line
    pool = "tokens"    # a vector is the mean of token embeddings

The loss is InfoNCE over the pairs of a step (``learn.retrieve.loss``). Codec, masks, noise and rounds are as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from edgewise.plan.recipe.rules import Section, SettingError, rule

Pool = Literal["tokens", "states"]


class RetrieverSection(Section):
    """Training of a retriever: pairs of a question and a passage, and the vector of a text."""

    pairs: Literal["none", "turns", "cloze", "rows"] = Field(
        "none",
        description="pairs of a question and its passage, made on each device; none: the model learns text, not "
        "search; turns: each line of a document and the line that follows; cloze: a sentence of each passage and the "
        "rest of it; rows: data.prompt and data.text of a table",
    )
    pool: Pool = Field(
        "tokens",
        description="vector of a text: the mean of its token embeddings, or of the last hidden states (states)",
    )
    temperature: float = Field(
        0.05, ge=0.001, le=10, description="of the loss: cosines are divided by it before the softmax"
    )

    @property
    def active(self) -> bool:
        """True if devices train a retriever."""
        return self.pairs != "none"

    @rule
    def _pairs_given(self) -> Iterator[SettingError]:
        changed = any(getattr(self, name) != field.default for name, field in type(self).model_fields.items())
        if not self.active and changed:
            what = 'the section [retriever] trains nothing with retriever.pairs = "none"'
            yield SettingError("E-COMBO", what, 'write pairs = "turns", "cloze" or "rows", or leave the section out')


def retriever_faults(recipe: Any) -> Iterator[SettingError]:
    """Find settings of a recipe (``plan.recipe.recipe.Recipe``) that training a retriever does not go with."""
    if not recipe.retriever.active:
        return
    data, training = recipe.data, recipe.training
    given = f'retriever.pairs = "{recipe.retriever.pairs}"'
    if recipe.retriever.pairs == "rows" and data.source != "own" and not data.prompt:
        what = f"{given}: a row's question is the column that data.prompt names, and none is named"
        yield SettingError("E-COMBO", what, 'name it, or write pairs = "turns" or "cloze"')
    if recipe.retriever.pairs != "rows" and data.prompt:
        what = f"{given} makes pairs of data.text alone, and data.prompt would not be read"
        yield SettingError("E-COMBO", what, 'leave out data.prompt, or write pairs = "rows"')
    if data.rendered:
        what = f"{given} with data.messages or data.as_chat: a chat template would stand in every question and passage"
        yield SettingError("E-COMBO", what, "leave both out; name the columns as data.prompt and data.text")
    if data.packing != "joined":
        yield SettingError("E-COMBO", f"{given} with data.packing: pairs never share a block", "leave out data.packing")
    if data.stream:
        what = f"{given} with data.stream: pairs have no window of time"
        yield SettingError("E-COMBO", what, "leave out data.stream")
    if training.batch < 2:
        what = f"{given} with training.batch = {training.batch}: the other passages of a step are what a question is "
        yield SettingError("E-COMBO", what + "told apart from", "raise training.batch; 32 is common")
    if training.accumulate > 1:
        what = f"{given} with training.accumulate = {training.accumulate}: each micro-batch would see its own passages "
        yield SettingError("E-COMBO", what + "only, which is another loss", "leave out training.accumulate")
    if recipe.dp.example:
        what = (
            f'{given} with dp.unit = "example": the loss of a pair depends on the others of its step, so no bound on '
        )
        fix = 'write dp.unit = "device", which protects all text of a device'
        yield SettingError("E-COMBO", what + "its own gradient would bound what it changes", fix)
    if recipe.engine.limits:
        what = f"{given} with engine.max_memory_mb or device_memory_mb: they pick micro-batches, which is another loss"
        yield SettingError("E-COMBO", what, "leave them out, or lower training.batch")
    if recipe.engine.batch_devices > 1:
        what = f"{given} with engine.batch_devices = {recipe.engine.batch_devices}: questions of one device would see "
        yield SettingError("E-COMBO", what + "passages of another", "write engine.batch_devices = 1")
    if recipe.report.samples:
        what = f"{given} with report.samples: a retriever continues no text"
        yield SettingError("E-COMBO", what, "leave out report.samples")
    for name, used in (("[split]", recipe.split.used), ("[distill]", recipe.distill.active)):
        if used:
            what = f"{given} with {name}, which trains the model to predict the next token"
            yield SettingError("E-COMBO", what, "leave one of them out")
    if recipe.personal.method != "none":
        what = f"{given} with [personal]: `edgewise index` takes the run's model, and would not use a personal one"
        yield SettingError("E-COMBO", what, "leave out [personal]")
