"""Text that a model writes: how it goes on with the beginning of a held-out text.

Shape suffixes: S = tokens of a block, n = tokens of a beginning, V = vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.keys import Key, generator
from edgewise.core.vector import Array

PROMPT, NEW = 32, 48  # tokens that are read, and that are written, at most
TEMPERATURE, TOP = 0.8, 20


class TextOpening(NamedTuple):
    """The beginning of a held-out text and how it goes on: token ids."""

    prompt: list[int]
    actual: list[int]


def opening(block_S: Array) -> TextOpening | None:
    """Cut a block (int32[S], ``~id`` is read and never predicted) after its first tokens: after what is read before
    the first token that is predicted, of instruction data the prompt, or else after ``PROMPT`` tokens, at most half.

    None where there is not one token after that.
    """
    predicted = np.flatnonzero(block_S >= 0)
    if not len(predicted):
        return None
    first, stop = int(predicted[0]), int(predicted[-1]) + 1
    at = first if first > 1 else min(PROMPT, stop // 2)
    read = np.where(block_S < 0, ~block_S, block_S)
    found = TextOpening(read[max(0, at - PROMPT) : at].tolist(), read[at : min(stop, at + NEW)].tolist())
    return found if found.prompt and found.actual else None


@torch.no_grad()
def continued(
    model: nn.Module, prompt: list[int], longest: int, end: int | None, arithmetic: torch.dtype, key: Key
) -> list[int]:
    """At most ``NEW`` tokens after ``prompt``, each drawn from the ``TOP`` likeliest at ``TEMPERATURE``, up to the end
    of the text (``end``).

    Args:
        longest: tokens that the model reads at once; of more, the last ones. key: decides the draws.
    Guarantees: same arguments on the same processor, same tokens.
    Source: Fan et al. 2018, arXiv:1805.04833, section 5 (top-k sampling).
    """
    rng, ids = generator(key), list(prompt)
    model.eval()
    for _ in range(NEW):
        with torch.autocast("cpu", torch.bfloat16, enabled=arithmetic is torch.bfloat16):
            logits_V = model(input_ids=torch.tensor([ids[-longest:]]), use_cache=False).logits[0, -1]
        best, at = torch.topk(logits_V.double(), min(TOP, len(logits_V)))
        p = torch.softmax(best / TEMPERATURE, 0).numpy()
        token = int(at[rng.choice(len(p), p=p / p.sum())])
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]
