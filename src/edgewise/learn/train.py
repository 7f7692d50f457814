"""Local training: some optimizer steps from the round's model, on one flat tensor.

Shape suffixes: D = all trainable coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, word
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.plan.recipe import TrainingSection

Batch = Any
Loss = Callable[[nn.Module, Batch], tuple[Tensor, float]]  # (mean loss over the batch, how many terms it averages)


class Fitted(NamedTuple):
    """``x = w_after - w_before`` (float32[d]); mean loss per term of the first and last quarter of the steps."""

    x: Vector
    loss_first: float
    loss_last: float


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Batch]],
    flat: Flat,
    params: Vector,
    rule: LocalRule,
    training: TrainingSection,
    key: Key,
    optimizer: Optimizer | None = None,
) -> Fitted:
    """``rule.steps`` steps of AdamW or SGD from ``params``, with fresh optimizer state.

    Each step: g = sum_m n_m grad(loss_m) / sum_m n_m over its micro-batches; g += mu (w - params) (FedProx);
    g *= min(1, clip / ||g||); one optimizer step.

    Args:
        loss: mean loss of a micro-batch and the number of terms n_m (tokens) that it is a mean of.
        batches: for each step its micro-batches, at least one.
        flat: the trainable parameters of ``model``. params: float32[d], the round's model; not changed.
        key: decides dropout; torch's global generator is left as it was.
        optimizer: buffers to reuse between calls (zeroed first); made where None.
    Returns:
        The difference and the losses.
    Raises:
        TrainingError: E-NAN where a loss or the update is not finite (with the step), E-TRAIN where the batches end
            too early.
    Guarantees:
        Same arguments, same number of torch threads: the same bits.
    Source: FedProx: Li et al. 2020, eq. 2 (gradient of mu/2 ||w - w_t||^2).
    """
    optimizer = optimizer or Optimizer(training, flat)
    optimizer.reset()
    flat.write(params)
    anchor_D = flat.w_D.clone() if rule.prox_mu else None
    if not model.training:
        model.train()
    seen: list[tuple[float, float]] = []  # per step: summed loss, terms
    stream = iter(batches)
    with seeded(key):
        for step in range(rule.steps):
            micro = next(stream, None)
            if micro is None:
                raise TrainingError("E-TRAIN", f"the data ends after {step} of {rule.steps} steps.")
            flat.zero_grad()
            seen.append(_backward(model, loss, micro, flat.g_D))
            if not math.isfinite(seen[-1][0]):
                raise TrainingError("E-NAN", f"the loss is {seen[-1][0]} at local step {step + 1}.", LOWER)
            if anchor_D is not None:
                flat.g_D.add_(flat.w_D, alpha=rule.prox_mu).sub_(anchor_D, alpha=rule.prox_mu)
            if training.clip_grad:
                norm = torch.linalg.vector_norm(flat.g_D)
                flat.g_D.mul_((training.clip_grad / (norm + 1e-6)).clamp_(max=1.0))
            optimizer.step(rule.lr)
    x = flat.minus(params)
    if not all(map(math.isfinite, torch.aminmax(torch.from_numpy(x)))):
        raise TrainingError("E-NAN", f"the update is not finite after local step {rule.steps}.", LOWER)
    quarter = max(1, rule.steps // 4)
    return Fitted(x, _mean(seen[:quarter]), _mean(seen[-quarter:]))


LOWER = "lower training.lr, or set training.clip_grad."


def _backward(model: nn.Module, loss: Loss, micro: Sequence[Batch], g_D: Tensor) -> tuple[float, float]:
    """Gradient of the mean over all micro-batches into ``g_D``; returns (summed loss, terms)."""
    if len(micro) == 1:
        mean, n = loss(model, micro[0])
        mean.backward()
        return mean.item() * n, n
    total, terms = 0.0, 0.0
    for batch in micro:
        mean, n = loss(model, batch)
        (mean * n).backward()
        total, terms = total + mean.item() * n, terms + n
    g_D.div_(terms)
    return total, terms


def _mean(seen: Sequence[tuple[float, float]]) -> float:
    return sum(s for s, _ in seen) / sum(n for _, n in seen)


@contextmanager
def seeded(key: Key) -> Iterator[None]:
    """torch's global CPU generator (dropout uses it) seeded from ``key`` inside, restored after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(word(derive(key, "torch")))
        yield


class Optimizer:
    """AdamW (Loshchilov and Hutter 2019; betas 0.9, 0.999, eps 1e-8) or SGD on the flat tensor.

    The fused kernel that ``torch.optim.AdamW(fused=True)`` calls, called directly: measured for 1.2 M parameters on one
    Zen 4 core 2 ms against 6.6 ms for the plain one, and ``torch.optim`` costs each process 2.9 s for importing
    ``torch._dynamo``. A test holds both to torch.optim's results.
    """

    def __init__(self, training: TrainingSection, flat: Flat) -> None:
        self._training, self._flat, self._steps = training, flat, torch.zeros(())
        adam = training.optimizer == "adamw"
        self.state = [torch.zeros_like(flat.w_D) for _ in range(2 if adam else bool(training.momentum))]

    def reset(self) -> None:
        """Fresh state, as at the start of every round."""
        self._steps.zero_()
        for x_D in self.state:
            x_D.zero_()

    def step(self, lr: float) -> None:
        """w from g, in place; ``g_D`` may be changed."""
        w_D, g_D, decay = self._flat.w_D, self._flat.g_D, self._training.weight_decay
        self._steps += 1
        if self._training.optimizer == "adamw":
            torch._fused_adamw_(
                [w_D], [g_D], [self.state[0]], [self.state[1]], [], [self._steps],
                lr=lr, beta1=0.9, beta2=0.999, weight_decay=decay, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        if decay:
            g_D.add_(w_D, alpha=decay)
        if self.state:  # from zero: the first step's momentum is the gradient itself, as in torch.optim.SGD
            g_D = self.state[0].mul_(self._training.momentum).add_(g_D)
        w_D.add_(g_D, alpha=-lr)
