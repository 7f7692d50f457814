"""Digest of the weights of a model that are not trained. Two runs with one digest start from the same base."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.factors import factor
from edgewise.learn.models import quantized


def frozen_digest(model: nn.Module, arithmetic: torch.dtype | None = None) -> str:
    """Return the SHA-256 of the weights that are not trained, as stored or rounded to ``arithmetic``.

    The trained weights are the run's initial vector, and a fixed factor A comes from the seed. Both are left out.
    """
    h = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad and not factor(name):
            h.update(name.encode())
            dtype = (p.is_floating_point() and arithmetic) or p.dtype  # Codes of a quantized base are whole numbers.
            h.update(_bytes(p.detach().to(dtype)))
    for name, scale in quantized.quantized_scales(model):
        h.update(name.encode())
        h.update(_bytes(scale.detach()))
    return h.hexdigest()


def whole_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and stored buffers, trained or not, as they are now."""
    h = hashlib.sha256()
    for name, x in sorted(model.state_dict().items()):
        if isinstance(x, Tensor):
            h.update(f"{name} {x.dtype} {tuple(x.shape)};".encode())
            h.update(_bytes(x.detach()))
    return h.hexdigest()


def _bytes(x: Tensor) -> Any:
    return x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
