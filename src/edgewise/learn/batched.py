"""Train the adapters of several devices in one pass over their shared, frozen base.

    together = Adapters(model, loss, flat)
    with together.devices(w_nD):                     # inside, row block i of a batch uses the adapter of device i
        model(ids)                                   # [n B, T]: device after device, B rows each

The frozen layers run once over all tokens. A device's adapter is row i of one tensor [n, r, c], so LoRA's two products
are batched matrix products. The gradient of row i depends on the tokens of device i alone, because devices share
nothing that is trained. So clipping and optimizer steps stay per device (``train.LocalSteps``).

Shape suffixes: n = devices, B = rows of a device, S = block length + 1, T = sequence, D = trainable coordinates,
r = rank, i, o = columns in and out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.errors import TrainingError
from edgewise.core.training import FitRequest
from edgewise.core.vector import Segment
from edgewise.learn.dp_sgd import MIXING
from edgewise.learn.flat import Flat, Storage
from edgewise.learn.models.load import TextLoss
from edgewise.learn.train import LOWER, Batch, Fitted, LocalSteps, Optimizer, dealt, quarters
from edgewise.plan.recipe.sections import TrainingSection


def joined(batches: Sequence[Tensor | None]) -> Tensor:
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


class _Layer(NamedTuple):
    """A linear layer with an adapter: its factors as segments, or as parameters that are not trained."""

    module: Any
    a: Segment | Tensor
    b: Segment | Tensor


class Adapters:
    """The adapters of a model, and their forward pass for several devices at once.

    Args:
        model: a causal model with LoRA by peft.
        loss: the loss on its blocks.
        flat: its trained parameters.
    Attributes:
        apart: the reason why devices cannot be trained together. Empty where they can.
        processor: the processor of the weights.
    """

    def __init__(self, model: nn.Module, loss: TextLoss, flat: Flat) -> None:
        self._model, self._loss, self.processor = model, loss, flat.w_D.device
        self._layers: list[_Layer] = []
        self.apart = self._examine(model, flat)

    def _examine(self, model: nn.Module, flat: Flat) -> str:
        segments = {id(p): s for s, p in flat.pairs()}
        left = set(segments)
        for name, module in model.named_modules():
            if isinstance(module, MIXING) or (isinstance(module, nn.Dropout) and module.p):
                return f"{name} mixes rows of a batch or draws at random for all of them"
            if not (hasattr(module, "lora_A") and hasattr(module, "base_layer")):
                continue
            if any(module.lora_variant.values()) or len(module.active_adapters) != 1 or not len(module.lora_A):
                continue
            (key,) = module.active_adapters
            a, b = module.lora_A[key].weight, module.lora_B[key].weight
            left -= {id(a), id(b)}
            self._layers.append(_Layer(module, segments.get(id(a), a), segments.get(id(b), b)))
        if left:
            name = min(segments[i].name for i in left)
            return f"{name} changes in a run, and it is no factor of a plain LoRA adapter on a linear layer"
        dropout = {k: v for k, v in vars(getattr(model, "config", None) or object).items() if _drops(k, v)}
        return f"the model has {min(dropout)}, which draws at random for all rows at once" if dropout else ""

    def backward(
        self, w_nD: Tensor, g_nD: Tensor, names: Collection[str], batches: Sequence[Any], summed: bool
    ) -> list[float]:
        """Add the gradients of the devices' losses to ``g_nD``, and return the mean losses.

        Args:
            batches: one (s_BS, terms) of each device. None for a device without one.
            summed: True takes the gradients of the sums over terms, False those of the means.
        """
        s_NS = joined([None if batch is None else batch[0] for batch in batches]).to(self.processor)
        terms = torch.tensor([1.0 if batch is None else float(batch[1]) for batch in batches], device=self.processor)
        with self.devices(w_nD, names) as leaves:
            sums = self._loss.sums(self._model, s_NS, len(batches))
            total = (sums if summed else sums / terms).sum()
            found_each = torch.autograd.grad(total, [leaf for _, leaf in leaves], allow_unused=True)
        for (segment, _), g in zip(leaves, found_each, strict=True):
            if g is not None:
                _rows(g_nD, segment).add_(g)
        means: list[float] = (sums.detach() / terms).tolist()
        return means

    @contextmanager
    def devices(self, w_nD: Tensor, names: Collection[str] = ()) -> Iterator[list[tuple[Segment, Tensor]]]:
        """Give row block i of each batch the adapter of device i inside.

        Args:
            w_nD: the weights of each device.
            names: the segments that are trained. None means all.
        Yields:
            The trained segments, each with its part of ``w_nD`` as a leaf of the graph: float32[n, *shape].
        """
        factors: dict[str, Tensor] = {}
        trained: list[tuple[Segment, Tensor]] = []
        for layer in self._layers:
            for factor in (layer.a, layer.b):
                if isinstance(factor, Segment):
                    leaf = _rows(w_nD, factor).detach()
                    if not names or factor.name in names:
                        trained.append((factor, leaf.requires_grad_()))
                    factors[factor.name] = leaf
        try:
            for layer in self._layers:
                a, b = (factors[f.name] if isinstance(f, Segment) else f for f in (layer.a, layer.b))
                layer.module.forward = partial(_forward, layer.module, a, b, len(w_nD))
            yield trained
        finally:
            for layer in self._layers:
                layer.module.__dict__.pop("forward", None)


def _drops(key: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and ("dropout" in key or key.endswith("_pdrop"))


def _rows(x_nD: Tensor, s: Segment) -> Tensor:
    return x_nD[:, s.start : s.stop].view(len(x_nD), *s.shape)


def _forward(module: Any, a: Tensor, b: Tensor, n: int, x: Tensor) -> Tensor:
    """Compute base(x) + scale x A^T B^T with factors of one device (2 axes) or of n devices (3 axes)."""
    (key,) = module.active_adapters
    out: Tensor = module.base_layer(x)
    h = x.to(a.dtype).reshape(n, -1, x.shape[-1])
    h = _product(h, a) * module.scaling[key]
    return out + _product(h, b).view(out.shape).to(out.dtype)


def _product(x_nTi: Tensor, w: Tensor) -> Tensor:
    return torch.bmm(x_nTi, w.mT) if w.ndim == 3 else F.linear(x_nTi, w)


class Passes(Protocol):
    """A way to train several devices in one pass. ``Adapters`` is one."""

    apart: str
    processor: torch.device

    def backward(
        self, w_nD: Tensor, g_nD: Tensor, names: Collection[str], batches: Sequence[Any], summed: bool
    ) -> list[float]:
        """See ``Adapters.backward``."""
        ...


def fit_many(
    passes: Passes,
    flat: Storage,
    requests: Sequence[FitRequest],
    batches: Sequence[Iterable[Sequence[Batch]]],
    training: TrainingSection,
    arithmetic: torch.dtype,
) -> list[Fitted | Exception]:
    """Train several devices together, each as ``train.fit`` trains it alone.

    Args:
        flat: the layout of the trained parameters. Its values are not used.
        requests: one of each device. All train the same segments.
        batches: for each device, the micro-batches of its steps.
        arithmetic: dtype of matrix products in the optimizer.
    Returns:
        For each request its result, or the error that ends the device's part.
    Guarantees:
        Each result equals that of ``train.fit`` to rounding, whatever the other devices are and in any order. Devices
        may have unequal numbers of steps, rows and tokens.
    """
    order = sorted(range(len(requests)), key=lambda i: -requests[i].rule.steps)
    devices = [_Device(requests[i], batches[i]) for i in order]
    w_nD = torch.from_numpy(np.stack([d.request.params for d in devices])).to(passes.processor)
    g_nD = torch.zeros_like(w_nD)
    for d, w_D, g_D in zip(devices, w_nD, g_nD, strict=True):
        storage, rule = Storage(flat.spec, w_D, g_D, flat.fixed), d.request.rule
        optimizer = Optimizer(training, storage, arithmetic)
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
        self.request, self._steps = request, dealt(batches, request.rule.steps)
        self.seen: list[tuple[float, float]] = []
        self.error: Exception | None = None

    def take(self) -> list[Any]:
        """Take the micro-batches of the next step. None where the device has failed."""
        try:
            return list(next(self._steps)) if self.error is None else []
        except Exception as e:  # boundary: a shard is foreign code, and other devices go on
            self.error = e
            return []

    def ended(self, w_D: Tensor) -> Fitted | Exception:
        if self.error is None:
            try:
                x = self.local.update(np.subtract(w_D.cpu().numpy(), self.request.params))
                return Fitted(x, *quarters(self.seen))
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
