"""Let a model continue the beginning of a held-out text.

Shape suffixes: S = tokens of a block, n = tokens of a beginning, V = vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.keys import Key, generator
from edgewise.core.vector import Array

PROMPT, NEW = 32, 48  # The largest numbers of tokens that a model reads and writes.
TEMPERATURE, TOP = 0.8, 20


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


@torch.no_grad()
def continued(
    model: nn.Module, prompt: list[int], longest: int, end: int | None, arithmetic: torch.dtype, key: Key
) -> list[int]:
    """Generate at most ``NEW`` tokens after ``prompt``, up to the end of the text (``end``).

    Each token is drawn from the ``TOP`` likeliest at ``TEMPERATURE``.

    Args:
        longest: largest number of tokens that the model reads at once. Of a longer text it reads the last ones.
        key: decides the draws.
    Guarantees: equal arguments give equal tokens on the same processor.
    Source: Fan et al. 2018, arXiv:1805.04833, section 5 (top-k sampling).
    """
    rng, ids, processor = generator(key), list(prompt), next(model.parameters()).device
    model.eval()
    for _ in range(NEW):
        with torch.autocast(processor.type, torch.bfloat16, enabled=arithmetic is torch.bfloat16):
            read_1T = torch.tensor([ids[-longest:]], device=processor)
            logits_V = model(input_ids=read_1T, use_cache=False).logits[0, -1].cpu()
        best, at = torch.topk(logits_V.double(), min(TOP, len(logits_V)))
        p = torch.softmax(best / TEMPERATURE, 0).numpy()
        token = int(at[rng.choice(len(p), p=p / p.sum())])
        if token == end:
            break
        ids.append(token)
    return ids[len(prompt) :]
