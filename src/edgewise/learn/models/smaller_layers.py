"""Linear layers with fewer parameters: a matrix with a public mask, and a product of two narrow matrices.

    put_layer_masks(model)            # layers with a buffer ``mask`` train and send the weights inside it alone
    densify_layers(model)              # ordinary linear layers again

A mask is a buffer of an ordinary ``nn.Linear``, so a masked model is a plain model until it is trained.

Shape suffixes: O = outputs, I = inputs, K = weights inside a mask, R = rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MASK = "mask"


class _Spread(torch.autograd.Function):
    """Write the weights inside a mask into a matrix of zeros. The gradient is read at the same places."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight_K: Tensor, places_K: Tensor, outputs: int, inputs: int) -> Tensor:
        flat = weight_K.new_zeros(outputs * inputs)
        return flat.scatter(0, places_K.long(), weight_K).view(outputs, inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad_OI: Tensor) -> tuple[Tensor, None, None, None]:
        (places_K,) = ctx.saved_tensors
        return grad_OI.reshape(-1).index_select(0, places_K), None, None, None


class MaskedLinear(nn.Module):
    """A linear layer whose matrix is zero outside a fixed mask: y = W x + b.

    Attributes:
        weight: the K weights inside the mask, row by row. This is the whole parameter: nothing outside it can move.
        places: the places of these weights in the flattened matrix, increasing, int32[K].
    """

    places: Tensor

    def __init__(self, outputs: int, inputs: int, kept: int, bias: bool, device: Any = None) -> None:
        super().__init__()
        self.out_features, self.in_features = outputs, inputs
        self.weight = nn.Parameter(torch.zeros(kept, device=device))
        self.bias = nn.Parameter(torch.zeros(outputs, device=device)) if bias else None
        self.register_buffer("places", torch.zeros(kept, dtype=torch.int32, device=device), persistent=False)

    @staticmethod
    def of(layer: nn.Linear) -> MaskedLinear:
        """Make one of a linear layer with a buffer ``mask``, bool[O, I]. It keeps the weights inside the mask."""
        mask_OI: Tensor = getattr(layer, MASK)
        places_K = mask_OI.reshape(-1).nonzero()[:, 0]
        made = MaskedLinear(layer.out_features, layer.in_features, len(places_K), layer.bias is not None)
        made.places = places_K.to(torch.int32)
        made.weight = nn.Parameter(layer.weight.detach().reshape(-1)[places_K], layer.weight.requires_grad)
        made.bias = layer.bias
        return made.train(layer.training)

    def matrix(self) -> Tensor:
        """Return the whole matrix, [O, I]."""
        found: Tensor = _Spread.apply(self.weight, self.places, self.out_features, self.in_features)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Multiply as ``nn.Linear`` does."""
        return F.linear(x, self.matrix(), self.bias)

    def dense(self) -> nn.Linear:
        """Return an ordinary layer of the same function, with its mask."""
        made = _linear(self.matrix().detach(), self.bias)
        mask = torch.zeros(made.weight.numel(), dtype=torch.bool)
        mask[self.places.long()] = True
        set_layer_mask(made, mask.view_as(made.weight))
        return made


class FactoredLinear(nn.Module):
    """A linear layer of low rank: y = L (R x) + b.

    Attributes:
        right: R, rank x inputs, without a bias.
        left: L, outputs x rank, with the layer's bias.
    """

    def __init__(self, outputs: int, inputs: int, rank: int, bias: bool, device: Any = None) -> None:
        super().__init__()
        self.right = nn.Linear(inputs, rank, bias=False, device=device)
        self.left = nn.Linear(rank, outputs, bias=bias, device=device)

    @staticmethod
    def of(left_OR: Tensor, right_RI: Tensor, bias: nn.Parameter | None) -> FactoredLinear:
        """Make one of two matrices and a bias."""
        made = FactoredLinear(left_OR.shape[0], right_RI.shape[1], left_OR.shape[1], bias is not None, "meta")
        made.right.weight = nn.Parameter(right_RI.contiguous())
        made.left.weight = nn.Parameter(left_OR.contiguous())
        if bias is not None:
            made.left.bias = bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by both factors."""
        out: Tensor = self.left(self.right(x))
        return out

    def dense(self) -> nn.Linear:
        """Return an ordinary layer with the product of both factors."""
        product = self.left.weight.detach().float() @ self.right.weight.detach().float()
        return _linear(product.to(self.left.weight.dtype), self.left.bias)


def set_layer_mask(layer: nn.Linear, mask_OI: Tensor) -> None:
    """Give a layer a mask, which is stored beside the weights and never in them."""
    layer.register_buffer(MASK, mask_OI, persistent=False)


def layer_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks of a model's layers, bool[O, I], by the name of the layer."""
    return {n: getattr(m, MASK) for n, m in model.named_modules() if isinstance(m, nn.Linear) and hasattr(m, MASK)}


def put_layer_masks(model: nn.Module) -> nn.Module:
    """Turn each layer with a mask into a ``MaskedLinear``. A model without masks stays as it is."""
    return replace_layers(model, {name: MaskedLinear.of(_of(model, name)) for name in layer_masks(model)})


def densify_layers(model: nn.Module) -> nn.Module:
    """Turn masked and factored layers into ordinary ones of the same function. Masks stay as buffers."""
    found = {n: m.dense() for n, m in model.named_modules() if isinstance(m, MaskedLinear | FactoredLinear)}
    return replace_layers(model, found)


def replace_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Put layers into a model in the place of those of the same names."""
    for name, layer in layers.items():
        owner, _, last = name.rpartition(".")
        setattr(model.get_submodule(owner), last, layer)
    return model


def _of(model: nn.Module, name: str) -> nn.Linear:
    found = model.get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


def _linear(weight_OI: Tensor, bias: Any) -> nn.Linear:
    made = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight_OI)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach())
    return made
