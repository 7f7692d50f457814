"""Train without gradients along seeded directions, with any ``TorchTrainer``. Coefficients travel, not parameters.

Shape suffixes: D = trainable coordinates of the model, K = directions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgewise.core import vector
from edgewise.core.errors import TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key, derive, generator
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine.trainer import Registered
from edgewise.learn.computing import computing
from edgewise.learn.directions import Seeds, direction_seeds, expand_directions, move_along_direction
from edgewise.learn.flat import Flat
from edgewise.learn.train import LOWER, Batch, FittedModel, Loss, dealt_batches, mean_loss, quarter_losses
from edgewise.learn.training_costs import measured_training_step_s, model_weights_bytes
from edgewise.strategies.base import Directions


def wrapped(trainer: Registered, directions: Directions, root: Key) -> Registered:
    """Wrap a trainer with a torch model into one whose vector is coefficients. Return any other trainer itself.

    The wrapped trainer takes no step noise, and has no loop or metrics of the user's own.

    Args:
        root: the run's key.
    """
    if trainer.moves is None:
        return trainer
    made = ZerothOrderTrainer(trainer, directions, root)
    return Registered(
        made,
        describes=made,
        counts=trainer.counts,
        measures=made,
        continues=None if trainer.continues is None else made,
        reads=trainer.reads,
        remarks=trainer.remarks,
    )


def rebuilt_from_coefficients(base_D: Vector, params: Vector, directions: Directions, root: Key) -> Vector:
    """Compute the parameters (float32[D]) from a run's coefficients (float32[K]). Raises ValueError on another K."""
    if params.shape != (directions.count,):
        raise ValueError(f"{params.shape} coefficients for {directions.count} directions")
    return expand_directions(base_D, params, _direction_seeds(directions, root))


def _direction_seeds(directions: Directions, root: Key) -> Seeds:
    """Draw the seeds of a round's directions."""
    return direction_seeds(derive(root, "directions"), directions.count)


def base_model_digest(spec: Spec, base_D: Vector) -> str:
    """Return the SHA-256 of layout and values of the parameters that the coefficients start from."""
    return vector.digest(spec.digest().encode() + vector.to_bytes(base_D))


def fit_zeroth_order(
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
) -> FittedModel:
    """Take ``rule.steps`` two-point steps from ``start_D``.

    Each step draws k uniformly from the K directions and takes both losses over the same batch:

        rho = (L(w + eps z_k) - L(w - eps z_k)) / (2 eps), cut to +-clip
        w -= lr rho z_k;   x_k -= lr rho

    Args:
        flat: the trainable parameters of ``model``. They hold w + sum_k x_k z_k afterwards, to float32 rounding.
        clip: largest |rho|; 0 = off. rho is the gradient's part along z, and E rho^2 = ||gradient||^2, so this is the
            recipe's ``clip_grad`` on the same scale as with gradients. (FedKSeed drops such a step. MeZO has no limit.)
        key: decides the directions.
    Returns:
        The change of the coefficients, float32[K]. The losses are means of both points.
    Raises:
        TrainingError: E-NAN, E-TRAIN as ``train.fit``.
    Guarantees:
        Equal arguments give equal bits. There is no gradient, no optimizer state and no copy of the weights, which
        move in place three times a step. The model is in evaluation mode, because dropout would make the two losses
        incomparable.
    Source: Malladi et al. 2023, arXiv:2305.17333, algorithm 1; Qin et al. 2024, arXiv:2312.06353, algorithm 1.
    """
    flat.write(start_D)
    w_D, x_K = flat.host(), np.zeros(len(seeds_K), np.float32)

    def shift(step: float, k: int) -> None:
        move_along_direction(w_D, step, seeds_K[k])
        flat.take(w_D)

    chosen = generator(key).integers(len(seeds_K), size=rule.steps)
    seen: list[tuple[float, float]] = []
    model.eval()
    with torch.no_grad():
        for k, micro in zip(chosen, dealt_batches(batches, rule.steps), strict=True):
            shift(eps, k)
            above, terms = _loss_sum(model, loss, micro)
            shift(-2.0 * eps, k)
            below, _ = _loss_sum(model, loss, micro)
            seen.append((0.5 * (above + below), terms))
            if not math.isfinite(seen[-1][0]):
                raise TrainingError("E-NAN", f"the loss is {seen[-1][0]} at local step {len(seen)}.", LOWER)
            rho = (above - below) / terms / (2.0 * eps)
            rho = max(-clip, min(clip, rho)) if clip else rho
            step = np.float32(rule.lr * rho)
            shift(eps - float(step), k)
            x_K[k] -= step
    if not np.isfinite(x_K).all():
        raise TrainingError("E-NAN", f"the update is not finite after local step {rule.steps}.", LOWER)
    return FittedModel(x_K, *quarter_losses(seen))


def _loss_sum(model: nn.Module, loss: Loss, micro: Sequence[Batch]) -> tuple[float, float]:
    """Sum the loss and the terms over all micro-batches."""
    total, terms = 0.0, 0.0
    for batch in micro:
        mean, n = mean_loss(loss, model, batch)
        total, terms = total + mean.item() * n, terms + n
    return total, terms


class ZerothOrderTrainer:
    """The ``Trainer`` port whose vector is the K coefficients of a ``TorchTrainer``'s directions.

    Args:
        inner: a registered trainer with the port ``moves``. The directions move its trained parameters.
        directions: their number, and the distance of the two losses.
        root: the run's key, from which the directions come. It is no secret, because everyone with the recipe has it.
    Guarantees:
        ``fit_zeroth_order`` and ``evaluate`` are functions of their arguments alone. All devices of a round share one
        rebuilt model, which is rebuilt only for new coefficients. That takes O(K D) time (1.2 s for D = 1.4 M and K =
        4096 on one EPYC core with AVX2).
    """

    def __init__(self, inner: Registered, directions: Directions, root: Key) -> None:
        if inner.moves is None:
            raise ValueError(f"{type(inner.trainer).__name__} has no model that moves along directions")
        self.inner, self.directions, self._ports, self._moves = inner.trainer, directions, inner, inner.moves
        self.spec = directions.spec
        self._seeds_K = _direction_seeds(directions, root)
        self._base_D = inner.initial()
        self._known = self.initial(), self._base_D  # These are the latest coefficients and their model.

    def initial(self) -> Vector:
        """Return zero coefficients (float32[K]), which stand for the model before round 0."""
        return np.zeros(self.directions.count, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """Return the population, sorted."""
        return self.inner.devices()

    def weights(self, params: Vector) -> Vector:
        """Return the parameters (float32[D]) for coefficients (float32[K]). The caller must not change them."""
        if not np.array_equal(params, self._known[0]):
            self._known = np.array(params), expand_directions(self._base_D, params, self._seeds_K)
        return self._known[1]

    def fit(self, request: FitRequest) -> Update:
        """Train one device from the round's coefficients. Raises as ``TorchTrainer.fit``."""
        batches, count = self._moves.work(request)
        inner, key = self._moves, derive(request.key, "directions")
        with computing(request.device):
            fitted = fit_zeroth_order(
                inner.model, inner.loss, batches, inner.flat, self.weights(request.params), request.rule,
                inner.training.clip_grad, self._seeds_K, self.directions.eps, key,
            )  # fmt: skip
        return Update(fitted.x, {"loss_first": fitted.loss_first, "loss_last": fitted.loss_last}, count)

    def records(self, device: DeviceId) -> int:
        """Count records as ``TorchTrainer.records``."""
        return self._moves.records(device)

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Measure the held-out loss of the model that ``params`` stand for. Raises as ``TorchTrainer.evaluate``."""
        return self.inner.evaluate(device, self.weights(params))

    def sample(self, device: DeviceId, params: Vector, key: Key) -> tuple[str, str, str]:
        """Continue a held-out text as ``TextTrainer.sample``, with the model that ``params`` stand for."""
        if self._ports.continues is None:
            raise TypeError(f"{type(self.inner).__name__} does not go on with text")
        return self._ports.continues.sample(device, self.weights(params), key)

    def step_s(self) -> float | None:
        """Measure the seconds of a step as ``TorchTrainer.step_s``, without rebuilding the model."""
        return measured_training_step_s(self, self._moves.training.lr)

    def sizes(self) -> Mapping[str, float]:
        """Forecast sizes as ``TorchTrainer.sizes``. ``trainable`` is D.

        ``memory_bytes`` counts weights, the parameters before round 0, the round's rebuilt ones, the coefficients, and
        activations of a forward pass. There is neither gradient nor optimizer state.
        """
        dims = 2.0 * self.inner.spec.dim + 4.0 * self.directions.count  # Round's, update's, and seeds of 8 bytes.
        return {
            **self.inner.sizes(),
            "memory_bytes": model_weights_bytes(self._moves.model) + 4.0 * dims + self._moves.forward_bytes,
        }

    def describe(self) -> dict[str, Any]:
        """Return the inner trainer's description, if it has one, with ``base_sha256`` (``base_model_digest``)."""
        return {**self._ports.describe(), "base_sha256": base_model_digest(self.inner.spec, self._base_D)}
