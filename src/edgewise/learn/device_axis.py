"""Run layers of a model with the weights of several devices at once.

    layers = DeviceLayers(model, flat)
    with layers.devices(w_nD, rows=n * B):           # inside, row block i of a batch uses the weights of device i
        model(ids_NT)                                # device after device, B rows each

A layer with trained weights takes weights [n, *shape], and row block i of its input meets those of device i. So linear
layers compute batched products. All other layers run as they are, over all rows.

Shape suffixes: n = devices, B = rows of a device, N = n B, T = all positions of one device, D = trainable coordinates,
i, o = columns in and out, V = vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from edgewise.core.vector import Segment
from edgewise.learn.dp_sgd import MIXING
from edgewise.learn.flat import Flat
from edgewise.learn.models.architecture import embeddings, logits

TRIED, EXACT, CLOSE = 2, 1e-3, 0.05  # Devices of a trial, and relative errors of float32 and of 16 bits or fewer.
SHARED = 2  # A factor with so many axes is the same for all devices.
Values = Mapping[str, Tensor]


class _Layer(NamedTuple):
    """A layer with trained weights: its weights as segments, or as tensors that all devices share."""

    module: Any
    forward: Callable[[Any, Values, int, Tensor], Tensor]
    weights: Mapping[str, Segment | Tensor]


class DeviceLayers:
    """The trained layers of a model, which can take weights of several devices.

    Args:
        model: a causal language model.
        flat: its trained parameters.
    Attributes:
        apart: the reason why devices cannot be trained together. None where they can.
    """

    def __init__(self, model: nn.Module, flat: Flat) -> None:
        self._layers: list[_Layer] = []
        self.apart = self._examine(model, flat)

    def _examine(self, model: nn.Module, flat: Flat) -> str | None:
        segments = {id(p): s for s, p in flat.pairs()}
        uncovered = set(segments)
        for name, module in model.named_modules():
            if isinstance(module, MIXING) or (isinstance(module, nn.Dropout) and module.p):
                return f"{name} mixes rows of a batch or draws at random for all of them"
            weights = _factors(module) or dict(module.named_parameters(recurse=False))
            if not any(id(p) in segments for p in weights.values()):
                continue
            if ".experts." in f".{name}.":
                return f"{name} is an expert, which reads some of the tokens only"
            if (forward := _kind(module)) is None:
                continue
            uncovered -= {id(p) for p in weights.values()}
            self._layers.append(_Layer(module, forward, {k: segments.get(id(p), p) for k, p in weights.items()}))
        if uncovered:
            name = min(segments[i].name for i in uncovered)
            kinds = "a plain LoRA adapter, or a linear, embedding or normalising layer"
            return f"{name} changes in a run, and it is no weight of {kinds}"
        dropout = {k: v for k, v in vars(getattr(model, "config", None) or object).items() if _drops(k, v)}
        return f"the model has {min(dropout)}, which draws at random for all rows at once" if dropout else None

    def tried(self, model: nn.Module, flat: Flat) -> str | None:
        """Compare two devices of random weights in one pass with the same two alone.

        A model may use a weight without calling its layer, or order its rows in another way. Then logits differ.

        Returns:
            The reason why devices cannot be trained together. None where the logits are equal to rounding.
        """
        exact = all(p.dtype is torch.float32 for p in model.parameters() if p.is_floating_point())
        start, g, mode = flat.w_D.clone(), torch.Generator().manual_seed(0), model.training
        noise_nD = torch.randn(TRIED, len(start), generator=g).to(start.device)
        w_nD = start * (1 + noise_nD / 4) + noise_nD.flip(0) / 50
        known = min(100, embeddings(model).weight.shape[0])
        ids_nBT = torch.randint(0, known, (TRIED, 2, 4), generator=g).to(start.device)
        model.eval()
        try:
            # Trained layers are in float32, also where the others are in 16 bits, and autocast lets them meet. Its
            # cache would keep the weights of the first device.
            half = torch.autocast(start.device.type, torch.bfloat16, enabled=not exact, cache_enabled=False)
            with torch.no_grad(), half:
                alone = []
                for w_D, ids_BT in zip(w_nD, ids_nBT, strict=True):
                    flat.w_D.copy_(w_D)
                    alone.append(logits(model, ids_BT))
                flat.w_D.copy_(start)
                with self.devices(w_nD, TRIED * 2):
                    together = logits(model, ids_nBT.flatten(0, 1))
        except (RuntimeError, ValueError, TypeError, IndexError) as e:  # boundary: the model's code is foreign
            return f"the model does not take rows of several devices at once ({type(e).__name__})"
        finally:
            flat.w_D.copy_(start)
            model.train(mode)
        expected = torch.cat(alone)
        error = float((together - expected).abs().max() / expected.abs().max())
        return None if error <= (EXACT if exact else CLOSE) else "the model's layers do not compute row by row"

    @contextmanager
    def devices(
        self, w_nD: Tensor, rows: int, g_nD: Tensor | None = None, names: Collection[str] = ()
    ) -> Iterator[None]:
        """Give row block i of each batch the weights of device i inside.

        Args:
            w_nD: the weights of each device.
            rows: N, the rows of a batch.
            g_nD: a backward pass inside adds the gradients here. None computes no gradient.
            names: the segments that are trained. None means all.
        """
        leaves: dict[str, Tensor] = {}
        for s in {w for layer in self._layers for w in layer.weights.values() if isinstance(w, Segment)}:
            leaves[s.name] = segment_rows(w_nD, s).detach()
            if g_nD is not None and (not names or s.name in names):
                leaves[s.name].requires_grad_().grad = segment_rows(g_nD, s)
        try:
            for layer in self._layers:
                values = {k: leaves[w.name] if isinstance(w, Segment) else w for k, w in layer.weights.items()}
                layer.module.forward = partial(_run, layer, values, len(w_nD), rows)
            yield
        finally:
            for layer in self._layers:
                layer.module.__dict__.pop("forward", None)


def segment_rows(x_nD: Tensor, s: Segment) -> Tensor:
    """Return one segment of each device as a view [n, *shape]."""
    return x_nD[:, s.start : s.stop].view(len(x_nD), *s.shape)


def _drops(key: str, value: object) -> bool:
    return isinstance(value, float) and value > 0 and ("dropout" in key or key.endswith("_pdrop"))


def _factors(module: Any) -> dict[str, Tensor]:
    """Return the factors of a plain LoRA layer. Empty for other modules."""
    if not (hasattr(module, "lora_A") and hasattr(module, "base_layer")):
        return {}
    if any(module.lora_variant.values()) or len(module.active_adapters) != 1 or not len(module.lora_A):
        return {}
    (key,) = module.active_adapters
    return {"a": module.lora_A[key].weight, "b": module.lora_B[key].weight}


def _kind(module: Any) -> Callable[[Any, Values, int, Tensor], Tensor] | None:
    """Return the forward pass of a kind of layer for several devices. None for a kind that has none."""
    if _factors(module):
        return _adapted
    if type(module).forward is nn.Linear.forward:
        return _linear
    if type(module).forward is nn.Embedding.forward:
        return _embedding if module.max_norm is None and not module.scale_grad_by_freq else None
    if type(module).__name__.endswith("Norm") and not any(module.children()):
        return partial(_mapped, copy.copy(module))  # The copy's forward is not replaced.
    return None


def _run(layer: _Layer, values: Values, n: int, rows: int, x: Tensor, *more: Any, **named: Any) -> Tensor:
    if x.shape[0] == 1 and rows > 1:  # Positions are given once for all rows.
        x = x.expand(rows, *x.shape[1:])
    return layer.forward(layer.module, values, n, x)


def _adapted(module: Any, values: Values, n: int, x: Tensor) -> Tensor:
    """Compute base(x) + scale x A^T B^T."""
    (key,) = module.active_adapters
    out: Tensor = module.base_layer(x)
    h = x.to(values["a"].dtype).reshape(n, -1, x.shape[-1])
    h = _product(h, values["a"]) * module.scaling[key]
    return out + _product(h, values["b"]).view(out.shape).to(out.dtype)


def _product(x_nTi: Tensor, w: Tensor) -> Tensor:
    if w.ndim == SHARED:
        return F.linear(x_nTi, w)
    if torch.is_autocast_enabled(x_nTi.device.type):
        x_nTi = x_nTi.to(torch.get_autocast_dtype(x_nTi.device.type))
    out: Tensor = _Product.apply(x_nTi, w)
    return out


class _Product(torch.autograd.Function):
    """x W^T for each device, in the dtype of x. The gradient of W is added to ``W.grad`` in place."""

    @staticmethod
    def forward(ctx: Any, x_nTi: Tensor, w_noi: Tensor) -> Tensor:
        """Compute the products."""
        cast_noi = w_noi.detach().to(x_nTi.dtype)
        ctx.save_for_backward(x_nTi, cast_noi)
        ctx.grad = w_noi.grad
        return torch.bmm(x_nTi, cast_noi.mT)

    @staticmethod
    def backward(ctx: Any, dy_nTo: Tensor) -> Any:  # type: ignore[override]
        """Compute the gradient of x."""
        x_nTi, w_noi = ctx.saved_tensors
        if ctx.grad is not None:
            if x_nTi.dtype == ctx.grad.dtype:
                ctx.grad.baddbmm_(dy_nTo.mT, x_nTi)
            else:
                ctx.grad.add_(torch.bmm(dy_nTo.mT, x_nTi))
        return (torch.bmm(dy_nTo, w_noi) if ctx.needs_input_grad[0] else None), None


class _Held(torch.autograd.Function):
    """A small weight as it is. Its gradient is added to ``W.grad``, whose layout torch's own accumulation warns of."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        """Return the weight."""
        ctx.grad = w.grad
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Any:  # type: ignore[override]
        """Add the gradient."""
        if ctx.grad is not None:
            ctx.grad.add_(dw)


def _held(w: Tensor) -> Tensor:
    out: Tensor = _Held.apply(w)
    return out


class _Lookup(torch.autograd.Function):
    """Rows of each device's table. Their gradients are added to ``W.grad``, but those of the row ``padding``."""

    @staticmethod
    def forward(ctx: Any, at_nT: Tensor, w_nVo: Tensor, padding: int | None) -> Tensor:
        """Read the rows."""
        ctx.at = torch.arange(len(at_nT), device=at_nT.device)[:, None], at_nT
        ctx.grad, ctx.padding = w_nVo.grad, padding
        return w_nVo[ctx.at]

    @staticmethod
    def backward(ctx: Any, dy_nTo: Tensor) -> Any:  # type: ignore[override]
        """Add the gradients."""
        if ctx.grad is not None:
            if ctx.padding is not None:
                dy_nTo = dy_nTo.masked_fill((ctx.at[1] == ctx.padding)[..., None], 0.0)
            ctx.grad.index_put_(ctx.at, dy_nTo.to(ctx.grad.dtype), accumulate=True)
        return None, None, None


def _linear(module: Any, values: Values, n: int, x: Tensor) -> Tensor:
    """Compute x W^T + b."""
    y_nTo = _product(x.reshape(n, -1, x.shape[-1]), values["weight"])
    if (b := values.get("bias")) is not None:
        y_nTo = y_nTo + (_held(b)[:, None] if b.ndim == SHARED else b).to(y_nTo.dtype)
    return y_nTo.view(*x.shape[:-1], -1)


def _embedding(module: Any, values: Values, n: int, ids: Tensor) -> Tensor:
    """Look tokens up in each device's table."""
    out: Tensor = _Lookup.apply(ids.reshape(n, -1), values["weight"], module.padding_idx)
    return out.view(*ids.shape, -1)


def _mapped(plain: nn.Module, module: Any, values: Values, n: int, x: Tensor) -> Tensor:
    """Map the layer's own forward pass over the device axis of its weights. ``plain`` is the layer as it was made."""
    own = {k: _held(w) for k, w in values.items() if w.ndim > plain.get_parameter(k).ndim}
    out: Tensor = vmap(partial(functional_call, plain))(own, x.reshape(n, -1, *x.shape[1:]))
    return out.view(-1, *out.shape[2:])
