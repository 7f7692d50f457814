"""The small head of a device's own, by which it trains the first blocks of a model without the rest (local-loss split).

Formula, with h [B, T, C] behind the device's last block and E [V, C] the model's input embedding:

    logits = (gain * h / rms(h)) M^T E^T            gain [C], M [C, C]

It starts with gain 1 and M the identity, so that two devices begin with the same head.

Shape suffixes: B = batch, T = sequence, C = width between blocks, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.codecs.select.cut_parts import LOCAL_HEAD
from edgewise.core.errors import ModelError
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.models.architecture import embeddings, text_config


class LocalHead(nn.Module):
    """A gain and a matrix before the model's own embedding, C + C^2 parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain, self.map = nn.Parameter(torch.ones(width)), nn.Parameter(torch.eye(width))

    def forward(self, h_BTC: Tensor, embedding_VC: Tensor) -> Tensor:
        """Compute logits [B, T, V]."""
        x_BTC = F.rms_norm(h_BTC.float(), (h_BTC.shape[-1],)) * self.gain
        return F.linear(F.linear(x_BTC, self.map), embedding_VC.to(x_BTC.dtype))


def with_initial_head(initial: Vector, model: nn.Module) -> Vector:
    """Append the head before round 0 to a model's initial parameters, float32[d]."""
    config: Any = model.config
    head = LocalHead(int(text_config(config).hidden_size))
    return np.concatenate([initial, *(p.detach().numpy().reshape(-1) for p in head.parameters())])


def with_local_head(model: nn.Module, flat: Flat) -> tuple[LocalHead, Flat]:
    """Make the head for a model, and a storage of the model's trained parameters and then of the head's.

    Raises:
        ModelError: E-CUT for a model whose embedding has another width than its blocks.
    """
    config: Any = model.config
    width, embedding = int(text_config(config).hidden_size), embeddings(model).weight
    if embedding.shape[-1] != width:
        what = f"the embedding of {type(model).__name__} has a width of {embedding.shape[-1]}, and its blocks {width}."
        raise ModelError("E-CUT", what, 'a head of the device\'s own needs equal widths: write split.loss = "end".')
    head = LocalHead(width)
    named = [(s.name, p) for s, p in flat.pairs()] + [(LOCAL_HEAD + name, p) for name, p in head.named_parameters()]
    return head, Flat(named, flat.fixed)
