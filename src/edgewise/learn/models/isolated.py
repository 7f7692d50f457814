"""Test whether an architecture can keep several documents of one row apart, by a forward pass and a gradient.

Shape suffixes: B = batch, T = sequence, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models.architecture import LARGE, embeddings, logits, probe_token_ids

FIX = 'write data.packing = "none", which gives each document blocks of its own, or "joined".'


def check_isolated(model: nn.Module, tokens: Any, length: int, name: str) -> None:
    """Refuse a model whose documents read one another although their positions begin anew.

    Two documents share a row. The logits of the second have no gradient with respect to the first, and are those of the
    second alone up to rounding. Layers that carry a state along the row, such as those of Mamba and of linear
    attention, fail this.

    Raises:
        ModelError: E-MODEL for such a model.
    Guarantees: weights, gradients, random state and the mode of the model stay as they are.
    """
    half = max(2, length // 2)
    ids_2T = probe_token_ids(tokens, 2, half, embeddings(model).weight.shape[0])
    positions_1T = torch.arange(half).repeat(2)[None]
    mode = model.training
    model.eval()
    try:
        with foreign(ModelError, "E-MODEL", f"{name} cannot keep documents of one block apart", FIX):
            reached, found = _second(model, ids_2T.reshape(1, -1), positions_1T, half)
            with torch.no_grad():
                alone = logits(model, ids_2T[1:]).float()
    finally:
        model.train(mode)
    moved = float((found - alone).abs().max())
    if reached or not moved <= LARGE * float(alone.abs().max()):
        what = f"{name} cannot keep documents of one block apart. Its layers carry one document into the next."
        raise ModelError("E-MODEL", what, FIX)


def _second(model: nn.Module, ids_1T: Tensor, positions_1T: Tensor, half: int) -> tuple[bool, Tensor]:
    """Return True if the second document's logits have a gradient with respect to the first, and those logits."""
    leaves: list[Tensor] = []

    def caught(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1]

    handle = embeddings(model).register_forward_hook(caught)
    try:
        with torch.enable_grad():
            out = logits(model, ids_1T, positions_1T)[:, half:].float()
            weights = torch.linspace(-1, 1, out.numel()).view_as(out)
            gradients = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    finally:
        handle.remove()
    n = ids_1T.shape[1]
    reached = not leaves or any(g is not None and bool(g.reshape(n, -1)[:half].any()) for g in gradients)
    return reached, out.detach()
