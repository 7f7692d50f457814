"""Contrast of representations for a causal language model (MOON), as a loss for ``learn.train.fit``.

    loss = loss_for(TextLoss(torch.float32), flat, request)

Shape suffixes: B = rows of a batch, T = positions, H = width of the model, D = trained coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.training import Contrast, FitRequest
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.models.load import TextLoss
from edgewise.learn.own_work import OwnWork
from edgewise.learn.train import Loss


def loss_for(loss: TextLoss, flat: Flat, request: FitRequest) -> Loss:
    """Return the loss of a request: ``loss`` itself, or with a contrast of representations."""
    contrast = request.correction.contrast
    return loss if contrast is None else ContrastLoss(loss, flat, request.params, contrast)


def lacks_representation(model: nn.Module, own: OwnWork | None) -> str | None:
    """Return the reason why training has no representation to contrast. None where the model has an output head."""
    if own is not None and own.loop is not None:
        return "your own training loop computes its loss itself"
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return None if isinstance(head, nn.Module) else f"{type(model).__name__} has no output head to read the input of"


def contrast_term(z_BH: Tensor, global_BH: Tensor, previous_BH: Tensor, tau: float) -> Tensor:
    """Compute the mean over rows of -log(exp(a / tau) / (exp(a / tau) + exp(b / tau))) = softplus((b - a) / tau).

    a and b are the cosine similarities of ``z_BH`` with the other two.
    """
    a_B, b_B = (F.cosine_similarity(z_BH, other_BH, dim=1) for other_BH in (global_BH, previous_BH))
    return F.softplus((b_B - a_B) / tau).mean()


class ContrastLoss:
    """Text loss plus mu l_con. The number that it returns is the text loss alone, so losses of strategies compare.

    Args:
        loss: the text loss.
        flat: storage of the trained parameters. They change during a call, and are as before afterwards.
        params: float32[d], the round's model.
        contrast: the weight, the temperature, and the previous model.
    Guarantees:
        The round's and the previous model are read without dropout and draw no random numbers.
    """

    def __init__(self, loss: TextLoss, flat: Flat, params: Vector, contrast: Contrast) -> None:
        assert contrast.previous is not None
        self._loss, self._flat, self._mu, self._tau = loss, flat, contrast.mu, contrast.tau
        # Vectors may be read-only, and torch warns of these. The clones come from torch's allocator, on its processor.
        self._global_D, self._previous_D = (
            torch.empty_like(flat.w_D).copy_(torch.from_numpy(np.array(x))) for x in (params, contrast.previous)
        )

    def __call__(self, model: nn.Module, batch: tuple[Tensor, int]) -> tuple[Tensor, float]:
        """Return the loss of a batch, as ``TextLoss``, with the gradient of both terms."""
        compared = [self._representations(model, batch[0], w_D) for w_D in (self._global_D, self._previous_D)]
        with head_input(model) as seen:
            mean, n = self._loss(model, batch)
        term = self._mu * contrast_term(self._pooled(seen[-1], batch[0]), *compared, self._tau)
        return mean + (term - term.detach()), n

    @torch.no_grad()
    def _representations(self, model: nn.Module, s_BS: Tensor, w_D: Tensor) -> Tensor:
        own_D, training = self._flat.w_D.clone(), model.training
        self._flat.w_D.copy_(w_D)
        model.eval()
        try:
            with head_input(model) as seen:
                self._loss(model, (s_BS, 1))
        finally:
            model.train(training)
            self._flat.w_D.copy_(own_D)
        return self._pooled(seen[-1], s_BS)

    def _pooled(self, h_BTH: Tensor, s_BS: Tensor) -> Tensor:
        """Average each row's hidden states over the positions that count. Rows without one are left out."""
        counts_BT = (self._loss.inputs(s_BS)[1] >= 0).float()
        n_B = counts_BT.sum(1)
        pooled_BH = (h_BTH.float() * counts_BT[:, :, None]).sum(1) / n_B.clamp(min=1)[:, None]
        return pooled_BH[n_B > 0]


@contextmanager
def head_input(model: Any) -> Iterator[list[Tensor]]:
    """Collect the inputs of the model's output head inside: [B, T, H] of each pass."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        hook.remove()
