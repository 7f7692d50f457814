"""Measure a model on held-out data: its summed negative log-likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from edgewise.core.errors import TrainingError
from edgewise.core.training import HeldOut
from edgewise.learn.train import Batch, Loss, mean_loss


def evaluate(model: nn.Module, loss: Loss, batches: Iterable[Batch]) -> HeldOut:
    """Sum ``mean * n`` over the batches, without gradients and in evaluation mode (no dropout).

    Args:
        loss: (model, batch) -> mean loss and the number n of its terms.
    Raises:
        TrainingError: E-NAN where the model's loss is not finite.
    Guarantees:
        Parameters, gradients and random state stay as they are, so training before and after is not affected.
    """
    if model.training:
        model.eval()
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            mean, n = mean_loss(loss, model, batch)
            nll, tokens = nll + mean.item() * n, tokens + int(n)
    if not math.isfinite(nll):
        raise TrainingError("E-NAN", f"the held-out loss is {nll}.", "lower training.lr or the server's step.")
    return HeldOut(nll, tokens)
