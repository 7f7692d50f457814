"""Train a small fixed model for a few steps, to compare the arithmetic of processors by the bytes of its update.

Shape suffixes: B = batch, T = sequence, C = width, V = vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.frame import LocalRule
from edgewise.core.training import Correction
from edgewise.core.vector import to_bytes
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import CPU
from edgewise.learn.train import LocalOptimizer, fit
from edgewise.plan.recipe.sections import TrainingSection

B, T, C, V = 4, 48, 96, 257
STEPS = 2


class _Block(nn.Module):
    """One block of a language model: embedding, attention, gated layer, an adapter of rank 8, norms, output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(V, C), nn.Linear(C, V, bias=False)
        self.norm, self.attend = nn.LayerNorm(C), nn.Linear(C, 3 * C)
        self.gate, self.up, self.down = nn.Linear(C, 3 * C), nn.Linear(C, 3 * C), nn.Linear(3 * C, C)
        self.thin, self.wide = nn.Linear(C, 8, bias=False), nn.Linear(8, C, bias=False)

    def forward(self, x_BT: Tensor) -> Tensor:
        h_BTC = self.embed(x_BT)
        q, k, v = (p.unflatten(-1, (4, -1)).transpose(1, 2) for p in self.attend(self.norm(h_BTC)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True)
        h_BTC = h_BTC + mixed.transpose(1, 2).flatten(2)
        h_BTC = h_BTC + self.down(F.silu(self.gate(h_BTC)) * self.up(h_BTC))
        h_BTC = h_BTC + self.wide(self.thin(h_BTC))
        return self.head(F.rms_norm(h_BTC, (C,)))


def arithmetic_probe(training: TrainingSection, processor: torch.device = CPU) -> bytes:
    """Return the update of two steps in float32, then in bfloat16, by a recipe's optimizer.

    Guarantees:
        The same processor, libraries and optimizer give the same bytes. torch's generator is left as it was.
    """
    training = training.model_copy(update={"batch": B, "accumulate": 1})
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(_Block())  # The block has the name of a numbered layer, so that Muon trains it.
    flat = Flat([(n, p) for n, p in model.named_parameters()])
    if processor.type != "cpu":
        model.to(processor)
        flat.move(processor)
    start = ((np.arange(flat.spec.dim) * 617 % 1009) / 1009 - 0.5).astype(np.float32) / 8
    tokens_BT = (torch.arange(B * (T + 1)) * 31 % V).view(B, T + 1).to(processor)
    updates = []
    for dtype in (torch.float32, torch.bfloat16):

        def loss(m: nn.Module, batch: Tensor, low: bool = dtype is torch.bfloat16) -> tuple[Tensor, float]:
            with torch.autocast(processor.type, torch.bfloat16, enabled=low):
                logits_BTV = m(batch[:, :-1])
            return F.cross_entropy(logits_BTV.float().flatten(0, 1), batch[:, 1:].flatten()), float(B * T)

        optimizer = LocalOptimizer(training, flat, dtype)
        rule = LocalRule(steps=STEPS, lr=1e-2)
        fitted = fit(
            model, loss, [[tokens_BT]] * STEPS, flat, start, rule, training, bytes(32), optimizer,
            correction=Correction(0.1),
        )  # fmt: skip
        updates.append(to_bytes(fitted.x))
    return b"".join(updates)
