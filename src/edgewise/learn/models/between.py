"""A small matrix between two fixed factors of LoRA (Fed-SB): W + alpha / rank B R A, of which only R is trained.

    put_between_factors(model)                 # R = 0: the model is the base
    take_out_between(model)                    # plain LoRA again, with R A in the place of A

The mean over devices is exact, since the product is linear in R. An update has rank^2 coordinates per matrix,
whatever the size of the matrix.
Source: Singhal et al. 2025, arXiv:2502.15436 (Fed-SB), with factors from the seed instead of a first gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.errors import ModelError

ADAPTER = "default"  # peft's name of the first adapter


class BetweenFactors(nn.Module):
    """The factor R A, with the interface of peft's factor A: a ``weight`` of shape (rank, inputs).

    Args:
        a: the factor A, which stays as it is.
    """

    def __init__(self, a: nn.Linear) -> None:
        super().__init__()
        self.inner = a
        self.between = nn.Parameter(torch.zeros(a.out_features, a.out_features))

    @property
    def weight(self) -> Tensor:
        """R A."""
        return self.between @ self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        """Compute x A^T R^T."""
        return F.linear(self.inner(x), self.between)


def put_between_factors(model: nn.Module) -> None:
    """Put R = 0 between the factors of each adapter, and train nothing else.

    Raises:
        ModelError: E-TARGETS for an adapter of an embedding, which looks rows of A up instead of multiplying by it.
    """
    for name, module in list(model.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        if ADAPTER not in module.lora_A:
            what = f'trainable.rule = "fed_sb" puts a matrix between two factors, and {name} looks rows up instead.'
            raise ModelError("E-TARGETS", what, 'leave embeddings out of trainable.targets, or take rule = "ffa".')
        module.lora_A[ADAPTER].requires_grad_(False)
        module.lora_B[ADAPTER].requires_grad_(False)
        module.lora_A[ADAPTER] = BetweenFactors(module.lora_A[ADAPTER])


def take_out_between(model: nn.Module) -> None:
    """Replace each ``BetweenFactors`` by a plain factor A with the same weight, for files of PEFT."""
    for module in model.modules():
        if isinstance(inner := getattr(module, "lora_A", {}), nn.ModuleDict):
            for name, factor in inner.items():
                if isinstance(factor, BetweenFactors):
                    plain = nn.Linear(factor.inner.in_features, factor.inner.out_features, bias=False)
                    plain.weight.data = factor.weight.detach()
                    inner[name] = plain
