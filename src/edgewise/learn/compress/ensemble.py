"""Several teachers as one: the weighted mean of their logits (FedDF).

    teacher = TeacherEnsemble([first, second], teacher_shares("text", [first, second], blocks_NS))
    logits(teacher, ids_BT)

Shape suffixes: K = teachers, N = blocks, S = block length + 1, B = batch, T = block length, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.vector import Array
from edgewise.learn.compress.teaching import measure_student

WEIGHTS = ("equal", "text", "entropy")
SAMPLE = 64  # Blocks of text that weigh the teachers.


class TeacherEnsemble(nn.Module):
    """Teachers of one vocabulary, of any architectures. It reads tokens as a model does, and cannot generate.

        z = sum_k w_k log softmax(z_k)

    The mean of log-probabilities gives the same probabilities as the mean of logits, since a softmax ignores what all
    tokens share.

    Args:
        teachers: at least one.
        shares_K: their weights, which add up to 1. None weighs each prediction by the teachers' certainty,
            w_k = (1 / H_k) / sum_j (1 / H_j), with the entropy H_k of teacher k's probabilities.
    Source: Lin et al. 2020 (FedDF), arXiv:2006.07242, algorithm 1, with equal weights there.
    """

    def __init__(self, teachers: Sequence[nn.Module], shares_K: Sequence[float] | None) -> None:
        super().__init__()
        self.teachers, self.shares_K = nn.ModuleList(teachers), shares_K
        self.config: Any = teachers[0].config

    def forward(self, input_ids: Tensor, **more: Any) -> Any:
        """Return an object with the logits, float32[B, T, V]."""
        each = [F.log_softmax(one(input_ids=input_ids, **more).logits.float(), -1) for one in self.teachers]
        if self.shares_K is not None:
            return SimpleNamespace(logits=sum(w * logp for w, logp in zip(self.shares_K, each, strict=True)))
        certainty_KBT = torch.stack([1.0 / (-(logp.exp() * logp).sum(-1)).clamp(min=1e-6) for logp in each])
        shares_KBT = certainty_KBT / certainty_KBT.sum(0)
        mixed = sum(w_BT[..., None] * logp for w_BT, logp in zip(shares_KBT, each, strict=True))
        return SimpleNamespace(logits=mixed)

    def get_input_embeddings(self) -> Any:
        """Return the token embeddings of the first teacher, whose vocabulary all have."""
        return self.teachers[0].get_input_embeddings()


def teacher_shares(rule: str, teachers: Sequence[nn.Module], blocks_NS: Array) -> list[float] | None:
    """Weigh teachers by a rule of ``WEIGHTS``.

        equal      1 / K
        text       exp(-loss_k) / sum_j exp(-loss_j): the inverse of their perplexities on some blocks
        entropy    None: each prediction has its own weights

    Args:
        blocks_NS: public text, of which ``SAMPLE`` evenly spaced blocks are read.
    """
    if rule == "entropy":
        return None
    if rule == "equal":
        return [1.0 / len(teachers)] * len(teachers)
    sample_NS = blocks_NS[:: -(-len(blocks_NS) // SAMPLE)]
    losses_K = [held.nll / max(1, held.tokens) for held in (measure_student(one, sample_NS) for one in teachers)]
    likely_K = np.exp(min(losses_K) - np.array(losses_K))
    return [float(w) for w in likely_K / likely_K.sum()]
