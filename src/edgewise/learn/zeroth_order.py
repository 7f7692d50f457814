"""Training without gradients along seeded directions, around any ``TorchTrainer``; coefficients in place of parameters.

Shape suffixes: D = trainable coordinates of the model, K = directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from edgewise.core import vector
from edgewise.core.errors import TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, generator
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine.trainer import CountsRecords, Registered, Trainer, registered
from edgewise.learn.directions import Seeds, expand, move, seeds_of
from edgewise.learn.flat import Flat
from edgewise.learn.torch_task import computing, measured_step_s, weights_bytes
from edgewise.learn.train import LOWER, Batch, Fitted, Loss, dealt, mean_loss, quarters
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.strategies.base import Directions


@runtime_checkable
class TrainsModel(Trainer, CountsRecords, Protocol):
    """The optional port of a trainer whose torch model can be moved along directions: ``TorchTrainer`` has it."""

    model: nn.Module
    loss: Loss
    flat: Flat
    training: TrainingSection
    forward_bytes: float

    def work(self, request: FitRequest) -> tuple[Iterable[Sequence[Batch]], float]:
        """The batches of each step, and the device's weight."""
        ...


def wrapped(trainer: Registered, directions: Directions, root: Key) -> Registered:
    """``trainer`` with coefficients for its vector where it has a torch model, else itself. root: the run's key.

    Steps along directions carry no noise, and compute nothing that a gradient does.
    """
    if not isinstance(trainer.trainer, TrainsModel):
        return trainer
    made = ZerothOrderTrainer(trainer.trainer, directions, root)
    return Registered(
        made,
        describes=made,
        counts=trainer.counts,
        measures=made,
        continues=None if trainer.continues is None else made,
        reads=trainer.reads,
        remarks=trainer.remarks,
    )


def rebuilt(base_D: Vector, params: Vector, directions: Directions, root: Key) -> Vector:
    """float32[D]: the parameters that a run's coefficients (float32[K]) stand for. Raises ValueError on another K."""
    if params.shape != (directions.count,):
        raise ValueError(f"{params.shape} coefficients for {directions.count} directions")
    return expand(base_D, params, _seeds(directions, root))


def _seeds(directions: Directions, root: Key) -> Seeds:
    return seeds_of(derive(root, "directions"), directions.count)


def base_digest(spec: Spec, base_D: Vector) -> str:
    """SHA-256 over layout and values of the parameters that the coefficients start from."""
    return vector.digest(spec.digest().encode() + vector.to_bytes(base_D))


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Sequence[Batch]],
    flat: Flat,
    start_D: Vector,
    rule: LocalRule,
    clip: float,
    seeds_K: Seeds,
    eps: float,
    key: Key,
) -> Fitted:
    """``rule.steps`` two-point steps from ``start_D``.

    Each step: k uniform from the K directions; rho = (L(w + eps z_k) - L(w - eps z_k)) / (2 eps), both losses over the
    same batch (all its micro-batches); rho is cut to +-clip; w -= lr rho z_k; x_k -= lr rho.

    Args:
        flat: the trainable parameters of ``model``; they hold w + sum_k x_k z_k afterwards, to float32 rounding.
        clip: largest |rho|, 0 = off. rho is the gradient's part along z, and E rho^2 = ||gradient||^2, so this is the
            recipe's ``clip_grad`` on the same scale as with gradients. (FedKSeed drops such a step; MeZO has no limit.)
        key: decides the directions.
    Returns:
        x: float32[K], the change of the coefficients; the losses are means of both points.
    Raises:
        TrainingError: E-NAN, E-TRAIN as ``train.fit``.
    Guarantees:
        No gradient, no optimizer state, no copy of the weights: they are moved in place, three times a step. Evaluation
        mode: dropout would make the two losses incomparable. Same arguments, same bits.
    Source: Malladi et al. 2023, arXiv:2305.17333, algorithm 1; Qin et al. 2024, arXiv:2312.06353, algorithm 1.
    """
    flat.write(start_D)
    w_D, x_K = flat.w_D.numpy(), np.zeros(len(seeds_K), np.float32)
    chosen = generator(key).integers(len(seeds_K), size=rule.steps)
    seen: list[tuple[float, float]] = []
    model.eval()
    with torch.no_grad():
        for k, micro in zip(chosen, dealt(batches, rule.steps), strict=True):
            move(w_D, eps, seeds_K[k])
            above, terms = _loss(model, loss, micro)
            move(w_D, -2.0 * eps, seeds_K[k])
            below, _ = _loss(model, loss, micro)
            seen.append((0.5 * (above + below), terms))
            if not math.isfinite(seen[-1][0]):
                raise TrainingError("E-NAN", f"the loss is {seen[-1][0]} at local step {len(seen)}.", LOWER)
            rho = (above - below) / terms / (2.0 * eps)
            rho = max(-clip, min(clip, rho)) if clip else rho
            step = np.float32(rule.lr * rho)
            move(w_D, eps - float(step), seeds_K[k])
            x_K[k] -= step
    if not np.isfinite(x_K).all():
        raise TrainingError("E-NAN", f"the update is not finite after local step {rule.steps}.", LOWER)
    return Fitted(x_K, *quarters(seen))


def _loss(model: nn.Module, loss: Loss, micro: Sequence[Batch]) -> tuple[float, float]:
    """Summed loss and terms over all micro-batches."""
    total, terms = 0.0, 0.0
    for batch in micro:
        mean, n = mean_loss(loss, model, batch)
        total, terms = total + mean.item() * n, terms + n
    return total, terms


class ZerothOrderTrainer:
    """The ``Trainer`` port whose vector is the K coefficients of a ``TorchTrainer``'s directions.

    Args:
        inner: model, data and loss; what it trains is what the directions move.
        directions: how many, and how far apart the two losses are. root: the run's key, which the directions are made
            from; it is no secret, everyone who has the recipe has it.
    Guarantees:
        ``fit`` and ``evaluate`` are functions of their arguments alone. The model is rebuilt from the coefficients once
        for as long as they stay the same, so that all devices of a round share it; that takes O(K D) time (1.2 s for
        D = 1.4 M and K = 4096 on one EPYC core with AVX2).
    """

    def __init__(self, inner: TrainsModel, directions: Directions, root: Key) -> None:
        self.inner, self.directions, self._can = inner, directions, registered(inner)
        self.spec = directions.spec
        self._seeds_K = _seeds(directions, root)
        self._base_D = inner.initial()
        self._known = self.initial(), self._base_D  # the last coefficients that were asked for, and their model

    def initial(self) -> Vector:
        """float32[K]: zeros, the model as it came."""
        return np.zeros(self.directions.count, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """The population, sorted."""
        return self.inner.devices()

    def weights(self, params: Vector) -> Vector:
        """float32[D] from float32[K]; not to be changed."""
        if not np.array_equal(params, self._known[0]):
            self._known = np.array(params), expand(self._base_D, params, self._seeds_K)
        return self._known[1]

    def fit(self, request: FitRequest) -> Update:
        """Local training. Raises as ``TorchTrainer.fit``."""
        batches, count = self.inner.work(request)
        inner, key = self.inner, derive(request.key, "directions")
        with computing(request.device):
            fitted = fit(
                inner.model, inner.loss, batches, inner.flat, self.weights(request.params), request.rule,
                inner.training.clip_grad, self._seeds_K, self.directions.eps, key,
            )  # fmt: skip
        return Update(fitted.x, {"loss_first": fitted.loss_first, "loss_last": fitted.loss_last}, count)

    def records(self, device: DeviceId) -> int:
        """As ``TorchTrainer.records``."""
        return self.inner.records(device)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Held-out loss of the model that ``params`` stand for. Raises as ``TorchTrainer.evaluate``."""
        return self.inner.evaluate(device, self.weights(params))

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """As ``TextTrainer.sample``, of the model that ``params`` stand for."""
        if self._can.continues is None:
            raise TypeError(f"{type(self.inner).__name__} does not go on with text")
        return self._can.continues.sample(device, self.weights(params), key)

    def step_s(self) -> float:
        """As ``TorchTrainer.step_s``, without the rebuilding of the model."""
        return measured_step_s(self, self.inner.training.lr)

    def sizes(self) -> Mapping[str, float]:
        """As ``TorchTrainer.sizes``; ``trainable`` is D.

        ``memory_bytes``: weights, the parameters before round 0 and the round's rebuilt ones, the coefficients, and
        activations of a forward pass: neither gradient nor optimizer state.
        """
        dims = 2.0 * self.inner.spec.dim + 4.0 * self.directions.count  # round's, update, seeds (8 bytes)
        return {
            **self.inner.sizes(),
            "memory_bytes": weights_bytes(self.inner.model) + 4.0 * dims + self.inner.forward_bytes,
        }

    def describe(self) -> dict[str, Any]:
        """What the inner trainer tells, where it does, and ``base_sha256``: see ``base_digest``."""
        told = {} if self._can.describes is None else self._can.describes.describe()
        return {**told, "base_sha256": base_digest(self.inner.spec, self._base_D)}
