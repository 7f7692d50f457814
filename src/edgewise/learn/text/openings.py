"""Cut a held-out text into a beginning, which a model goes on with, and its true continuation.

Shape suffixes: S = tokens of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgewise.core.vector import Array

PROMPT, NEW = 32, 48  # The largest numbers of tokens that a model reads and writes.


class TextOpening(NamedTuple):
    """The beginning of a held-out text and its true continuation, as token ids."""

    prompt: list[int]
    actual: list[int]


def opening(block_S: Array) -> TextOpening | None:
    """Cut a block into a beginning and its continuation.

    Instruction data is cut after the prompt. Other text is cut after ``PROMPT`` tokens, or after half of it if it is
    shorter.

    Args:
        block_S: int32[S]. ``~id`` stands for a token that is read and never predicted.
    Returns:
        None where no token would follow the cut.
    """
    predicted = np.flatnonzero(block_S >= 0)
    if not len(predicted):
        return None
    first, stop = int(predicted[0]), int(predicted[-1]) + 1
    at = first if first > 1 else min(PROMPT, stop // 2)
    read = np.where(block_S < 0, ~block_S, block_S)
    found = TextOpening(read[max(0, at - PROMPT) : at].tolist(), read[at : min(stop, at + NEW)].tolist())
    return found if found.prompt and found.actual else None
