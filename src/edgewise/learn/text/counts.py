"""What became of a device's text on its way into blocks: numbers that add up over devices."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgewise.core.vector import Array


class Counts(NamedTuple):
    """What became of a device's text.

    Attributes:
        documents: files, pieces of files or rows. empty: those without a token of text. cut: those of which
            ``data.max_tokens`` leaves a part, beyond: those of which it leaves nothing. prompts_over: those beyond,
            whose prompt alone is as long as that.
        characters: of all text, without prompts. characters_beyond: those left out by ``data.max_tokens``.
        replaced: bad bytes that stand as U+FFFD in the text.
        tokens: of the text that is used, the tokens around documents not counted.
        answers: rows for training that have a prompt. answers_short: those of which some token is predicted without
            the whole prompt in its block.
        answer_tokens: predicted in them. tokens_short: without the whole prompt, tokens_blind: with nothing of it.
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
        """int64[14]."""
        return np.array(self, np.int64)
