"""Train several devices in one pass over a model.

    together = OnePass(model, loss, flat)
    buffers = DeviceBuffers(len(requests), flat, training, torch.float32)
    fitted = fit_many(together, buffers, requests, batches)

Layers that train have a device axis (``learn.device_axis``). All other layers run once over all tokens. The gradient of
row i of the weights depends on the tokens of device i alone, because devices share nothing that is trained. So clipping
and optimizer steps stay per device (``train.LocalSteps``).

Shape suffixes: n = devices, B = rows of a device, N = n B, S = block length + 1, D = trainable coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.training import FitRequest
from edgewise.learn.device_axis import DeviceLayers
from edgewise.learn.flat import Flat, FlatStorage
from edgewise.learn.models.load import TextLoss
from edgewise.learn.train import LOWER, Batch, FittedModel, LocalOptimizer, LocalSteps, dealt_batches, quarter_losses
from edgewise.plan.recipe.sections import TrainingSection


def joined_batch(batches: Sequence[Tensor | None]) -> Tensor:
    """Join one batch s_BS of each device to s_NS, device after device, N = n times the most rows.

    Shorter batches are padded with tokens that are read and never predicted. They stand behind a row, where a causal
    model does not see them. None is a device without a batch.
    """
    shapes = [s_BS.shape for s_BS in batches if s_BS is not None]
    rows, columns = (max(shape[axis] for shape in shapes) for axis in (0, 1))
    s_nBS = torch.full((len(batches), rows, columns), ~0)
    for to_BS, s_BS in zip(s_nBS, batches, strict=True):
        if s_BS is not None:
            to_BS[: s_BS.shape[0], : s_BS.shape[1]] = s_BS
    return s_nBS.flatten(0, 1)


class OnePass:
    """Losses and gradients of several devices from one pass through a model.

    Args:
        model: a causal language model.
        loss: the loss on its blocks.
        flat: its trained parameters.
    """

    def __init__(self, model: nn.Module, loss: TextLoss, flat: Flat) -> None:
        self._model, self._loss, self._flat, self.processor = model, loss, flat, flat.w_D.device
        self._layers = DeviceLayers(model, flat)

    @cached_property
    def apart(self) -> str | None:
        """The reason why devices cannot be trained together. None where they can. The model is tried for it once."""
        return self._layers.tried(self._model, self._flat) if self._layers.apart is None else self._layers.apart

    def backward(
        self, w_nD: Tensor, g_nD: Tensor, names: Collection[str], batches: Sequence[Any], summed: bool
    ) -> list[float]:
        """Add the gradients of the devices' losses to ``g_nD``, and return the mean losses.

        Args:
            batches: one (s_BS, terms) of each device. None for a device without one.
            summed: True takes the gradients of the sums over terms, False those of the means.
        """
        s_NS = joined_batch([None if batch is None else batch[0] for batch in batches]).to(self.processor)
        terms = torch.tensor([1.0 if batch is None else float(batch[1]) for batch in batches], device=self.processor)
        with self._layers.devices(w_nD, len(s_NS), g_nD, names):
            sums = self._loss.sums(self._model, s_NS, len(batches))
            (sums if summed else sums / terms).sum().backward()
        means: list[float] = (sums.detach() / terms).tolist()
        return means


class Passes(Protocol):
    """A way to train several devices in one pass. ``OnePass`` is one."""

    processor: torch.device

    @property
    def apart(self) -> str | None:
        """See ``OnePass.apart``."""
        ...

    def backward(
        self, w_nD: Tensor, g_nD: Tensor, names: Collection[str], batches: Sequence[Any], summed: bool
    ) -> list[float]:
        """See ``OnePass.backward``."""
        ...


class DeviceBuffers:
    """Weights, gradients and optimizer states of up to ``n`` devices. Passes use them again, like one device its own.

    Args:
        flat: the layout of the trained parameters, and their processor. Its values are not used.
        arithmetic: dtype of matrix products in the optimizer.
    """

    def __init__(self, n: int, flat: FlatStorage, training: TrainingSection, arithmetic: torch.dtype) -> None:
        self.n, self.training = n, training
        self.w_nD, self.g_nD = (torch.zeros(n, flat.spec.dim, device=flat.w_D.device) for _ in range(2))
        rows = zip(self.w_nD, self.g_nD, strict=True)
        self.storages = [FlatStorage(flat.spec, w_D, g_D, flat.fixed) for w_D, g_D in rows]
        self.optimizers = [LocalOptimizer(training, storage, arithmetic) for storage in self.storages]


def fit_many(
    passes: Passes, buffers: DeviceBuffers, requests: Sequence[FitRequest], batches: Sequence[Iterable[Sequence[Batch]]]
) -> list[FittedModel | Exception]:
    """Train several devices together, each as ``train.fit`` trains it alone.

    Args:
        buffers: room for at least as many devices.
        requests: one of each device. All train the same segments.
        batches: for each device, the micro-batches of its steps.
    Returns:
        For each request its result, or the error that ends the device's part.
    Guarantees:
        Each result equals that of ``train.fit`` to rounding, whatever the other devices are and in any order. Devices
        may have unequal numbers of steps, rows and tokens.
    """
    if any(request.correction.contrast is not None for request in requests):
        raise ValueError("a contrast of representations trains one device at a time")
    order = sorted(range(len(requests)), key=lambda i: -requests[i].rule.steps)
    devices = [_Device(requests[i], batches[i]) for i in order]
    w_nD, g_nD = buffers.w_nD[: len(devices)], buffers.g_nD[: len(devices)]
    for d, storage, optimizer in zip(devices, buffers.storages, buffers.optimizers, strict=False):
        storage.w_D.copy_(torch.from_numpy(d.request.params))
        rule, training = d.request.rule, buffers.training
        d.local = LocalSteps(storage, optimizer, rule, training, d.request.correction, d.request.rank)
    for step in range(devices[0].request.rule.steps):
        training_now = [d for d in devices if d.request.rule.steps > step]
        _step(passes, w_nD[: len(training_now)], g_nD[: len(training_now)], training_now, step)
    ended = dict(zip(order, (d.ended(w_D) for d, w_D in zip(devices, w_nD, strict=True)), strict=True))
    return [ended[i] for i in range(len(requests))]


class _Device:
    """One device of a batch: its request, batches, losses so far (sum and terms of each step), and its error."""

    local: LocalSteps

    def __init__(self, request: FitRequest, batches: Iterable[Sequence[Batch]]) -> None:
        self.request, self._steps = request, dealt_batches(batches, request.rule.steps)
        self.seen: list[tuple[float, float]] = []
        self.error: Exception | None = None

    def take(self) -> list[Any]:
        """Take the micro-batches of the next step. None where the device has failed."""
        try:
            return list(next(self._steps)) if self.error is None else []
        except Exception as e:  # boundary: a shard is foreign code, and other devices go on
            self.error = e
            return []

    def ended(self, w_D: Tensor) -> FittedModel | Exception:
        if self.error is None:
            try:
                x = self.local.update(np.subtract(w_D.cpu().numpy(), self.request.params))
                return FittedModel(x, *quarter_losses(self.seen))
            except TrainingError as e:
                self.error = e
        return self.error


def _step(passes: Passes, w_nD: Tensor, g_nD: Tensor, devices: Sequence[_Device], step: int) -> None:
    """Take one step of each device."""
    micro = [d.take() for d in devices]
    parts, names = max(map(len, micro)), devices[0].local.names
    g_nD.zero_()
    sums, terms = [0.0] * len(devices), [0.0] * len(devices)
    if not parts:  # All devices have failed.
        return
    for part in range(parts):
        batches = [each[part] if part < len(each) else None for each in micro]
        means = passes.backward(w_nD, g_nD, names, batches, summed=parts > 1)
        for i, batch in enumerate(batches):
            if batch is not None:
                sums[i], terms[i] = sums[i] + means[i] * batch[1], terms[i] + batch[1]
    for d, g_D, total, n in zip(devices, g_nD, sums, terms, strict=True):
        if d.error is None and not math.isfinite(total):
            d.error = TrainingError("E-NAN", f"the loss is {total} at local step {step + 1}.", LOWER)
        if d.error is None:
            d.seen.append((total, n))
            if parts > 1:
                g_D.div_(n)
            d.local.step()
