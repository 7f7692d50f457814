"""Counts of a device's text on its way into blocks. They add up over devices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgewise.core.vector import Array


class Counts(NamedTuple):
    """The counts of a device's text.

    Attributes:
        documents: files, pieces of files, or rows.
        empty: documents without a token of text.
        cut: documents of which ``data.max_tokens`` leaves a part.
        beyond: documents of which it leaves nothing.
        prompts_over: documents of ``beyond`` whose prompt alone is as long as ``data.max_tokens``.
        characters: characters of all text, without prompts.
        characters_beyond: characters that ``data.max_tokens`` leaves out.
        replaced: bad bytes that the text has as U+FFFD.
        tokens: tokens of the used text, without those around documents.
        answers: training rows with a prompt.
        answers_short: answers with a token that is predicted without the whole prompt in its block.
        answer_tokens: predicted tokens of answers.
        tokens_short: predicted tokens of answers without the whole prompt in their block.
        tokens_blind: predicted tokens of answers without any of the prompt in their block.
    """

    documents: int = 0
    empty: int = 0
    cut: int = 0
    beyond: int = 0
    prompts_over: int = 0
    characters: int = 0
    characters_beyond: int = 0
    replaced: int = 0
    tokens: int = 0
    answers: int = 0
    answers_short: int = 0
    answer_tokens: int = 0
    tokens_short: int = 0
    tokens_blind: int = 0

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))

    def array(self) -> Array:
        """Return the counts as int64[14]."""
        return np.array(self, np.int64)
