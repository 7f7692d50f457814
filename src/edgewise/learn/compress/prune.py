"""Unstructured pruning: set the least important weights of linear layers to zero, under a public mask.

    prune_layers(model, magnitude_scores(model), 0.5)                # the smaller half of each output row goes
    prune_layers(model, wanda_scores(model, calibration_NS), 0.5)

The mask is a buffer of the layer. A model with masks is stored in fewer bytes (``learn.models.compact``). It is no
faster: dense kernels multiply the zeros too.

Shape suffixes: N = blocks, S = tokens per block, O = outputs, I = inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from edgewise.core.vector import Array
from edgewise.learn.compress.measure import calibration_layer_inputs
from edgewise.learn.models.blocks import decoder_block_layers
from edgewise.learn.models.smaller_layers import set_layer_mask


def magnitude_scores(model: Any) -> dict[str, Tensor]:
    """Score each weight of the decoder blocks by |W|: float32[O, I] by layer. Raises ModelError(E-SHRINK)."""
    return {name: layer.weight.detach().float().abs() for name, layer in decoder_block_layers(model).items()}


def wanda_scores(model: Any, blocks_NS: Array) -> dict[str, Tensor]:
    """Score each weight by |W_ij| ||X_j||_2, where X_j is input j of the layer over all calibration tokens.

    Args:
        blocks_NS: calibration text.
    Returns:
        Scores as ``magnitude_scores``.
    Raises:
        ModelError: E-SHRINK.
    Source: Sun et al. 2024, arXiv:2306.11695, equation 1. There the layers are pruned one block after another, and the
        inputs are those of the pruned blocks before. Here all inputs are those of the dense model.
    """
    scores = magnitude_scores(model)
    inputs = calibration_layer_inputs(model, blocks_NS, scores)
    return {name: score * inputs[name].squares_I.sqrt().float() for name, score in scores.items()}


def mask_of_scores(scores_OI: Tensor, kept: float) -> Tensor:
    """Keep the same number of weights of each output row, those of the largest scores: bool[O, I].

    Args:
        kept: share of the weights to keep, in (0, 1]. A row keeps round(kept I) weights, and one at least.
    Guarantees: of equal scores the earlier weight is kept, so equal scores give equal masks on every machine.
    """
    count = max(1, round(kept * scores_OI.shape[1]))
    order = scores_OI.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, order, True)


def prune_layers(model: Any, scores: Mapping[str, Tensor], kept: float) -> None:
    """Give layers masks by their scores, and set the weights outside them to zero."""
    layers = decoder_block_layers(model)
    with torch.no_grad():
        for name, score in scores.items():
            mask = mask_of_scores(score, kept)
            layers[name].weight.masked_fill_(~mask.to(layers[name].weight.device), 0.0)
            set_layer_mask(layers[name], mask)
