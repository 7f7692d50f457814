"""Measure a model on text: its loss, its speed, and the inputs of its layers.

    model_perplexity(model, held_NS)
    observed = calibration_layer_inputs(model, train_NS[:64], ["model.layers.0.mlp.up_proj"])

Shape suffixes: N = blocks, S = tokens per block, I = inputs of a layer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.core.vector import Array
from edgewise.learn.evaluate import evaluate
from edgewise.learn.models.architecture import embeddings, logits
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.memory import evaluated_at_once
from edgewise.learn.text.blocks import predictions
from edgewise.learn.text.marks import BEGINS


class LayerInputs(NamedTuple):
    """Sums over all tokens that a layer read.

    Attributes:
        squares_I: sum of x_i^2, float64[I].
        gram_II: sum of x x^T, float64[I, I]. None where it was not asked for.
    """

    squares_I: Tensor
    gram_II: Tensor | None


def model_perplexity(model: nn.Module, blocks_NS: Array) -> float:
    """Return exp of the mean negative log-likelihood of the predicted tokens, in nats."""
    held = evaluate(
        model, TextLoss(torch.float32), ((torch.from_numpy(b), predictions(b)) for b in _passes(model, blocks_NS))
    )
    return math.exp(min(held.nll / max(1, held.tokens), 700.0))


def calibration_layer_inputs(
    model: nn.Module, blocks_NS: Array, names: Collection[str], gram: bool = False
) -> dict[str, LayerInputs]:
    """Run a model over calibration text and add up the inputs of some layers.

    Args:
        blocks_NS: calibration text.
        gram: also add up the second moments. They need 8 I^2 bytes a layer.
    """
    found: dict[str, list[Any]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x_TI = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double()
            sums = found.setdefault(name, [0.0, 0.0])
            sums[0] = sums[0] + x_TI.square().sum(0)
            if gram:
                sums[1] = sums[1] + x_TI.T @ x_TI

        return hook

    with ExitStack() as stack, torch.no_grad():
        for name in names:
            stack.callback(model.get_submodule(name).register_forward_pre_hook(note(name)).remove)
        model.eval()
        for b in _passes(model, blocks_NS):
            logits(model, read_ids(torch.from_numpy(b))[:, :-1])
    return {name: LayerInputs(squares, moments if gram else None) for name, (squares, moments) in found.items()}


def model_tokens_per_s(models: dict[str, nn.Module], blocks_NS: Array, passes: int = 5) -> dict[str, float]:
    """Return the tokens per second of forward passes, in turn and on as many threads as torch has.

    The median of some passes of each model counts. The models take turns, so that a busy machine slows all of them.
    """
    ids_BT = read_ids(torch.from_numpy(next(_passes(next(iter(models.values())), blocks_NS))))[:, :-1]
    took: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for i in range(passes + 1):  # The first pass warms up.
            for name, model in models.items():
                start = time.perf_counter()
                logits(model.eval(), ids_BT)
                if i:
                    took[name].append(time.perf_counter() - start)
    return {name: ids_BT.numel() / median(seconds) for name, seconds in took.items()}


def read_ids(s_BS: Tensor) -> Tensor:
    """Return the token ids that a model reads, of blocks (``learn.text.blocks``)."""
    return torch.where(s_BS < 0, ~s_BS, s_BS) & ~BEGINS


def _passes(model: nn.Module, blocks_NS: Array) -> Iterator[Array]:
    size = max(1, evaluated_at_once(embeddings(model).weight.shape[0]) // (blocks_NS.shape[1] - 1))
    for at in range(0, len(blocks_NS), size):
        yield np.asarray(blocks_NS[at : at + size], np.int64)
