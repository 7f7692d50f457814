"""Two adapters of a matrix, both active: the shared one, and a device's own behind a gate (dual LoRA).

    h = W x + s B_g A_g x + s a(x) B_p A_p x,        a(x) = sigmoid(u x + c)

    put_gates(model)                   # u = 0, c = 0: a = 1/2 for every token
    without_own(model)                 # for files, which hold no gate

x is the input of the adapted layer at one token, so the gate chooses for each token how much of the device's own
adapter counts. u and c are trained with the own adapter, and belong to the device's own part. Without a gate a = 1.
Source of two active adapters: Yang et al. 2024, arXiv:2403.19211 (FedDPA), whose gate compares a whole input with
prototypes. A trained gate for each input: Bian et al. 2025, arXiv:2503.11880 (FedALT).

Shape suffixes: B = batch, T = tokens, I = inputs, R = rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.errors import EdgewiseError, ModelError

OWN = "own"  # peft's name of the device's own adapter


class Gated(nn.Module):
    """The factor a(x) A, with the interface of peft's factor A: a ``weight`` of shape (rank, inputs), without the gate.

    Args:
        a: the factor A.
    """

    def __init__(self, a: nn.Linear) -> None:
        super().__init__()
        self.inner = a
        self.gate = nn.Parameter(torch.zeros(a.in_features + 1))  # u, and c at the end

    @property
    def weight(self) -> Tensor:
        """A."""
        return self.inner.weight

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Compute a(x) A x: [B, T, R]."""
        a_BT1 = torch.sigmoid(x_BTI @ self.gate[:-1].unsqueeze(1).to(x_BTI.dtype) + self.gate[-1])
        gated: Tensor = self.inner(x_BTI) * a_BT1
        return gated


def put_gates(model: nn.Module) -> None:
    """Put a gate before the own adapter of each adapted layer.

    Raises:
        ModelError: E-TARGETS for an adapter of an embedding, whose input is no vector.
    """
    for name, module in list(model.named_modules()):
        if not hasattr(module, "lora_A"):
            continue
        if OWN not in module.lora_A:
            what = f'personal.gate = "token" reads the input of an adapted layer, and {name} looks rows up.'
            raise ModelError("E-TARGETS", what, 'leave embeddings out of trainable.targets, or write gate = "none".')
        module.lora_A[OWN] = Gated(module.lora_A[OWN])


def without_own(model: Any) -> None:
    """Take the own adapter out where it adds nothing, as in the federated model. Leave one without gates as it is.

    Raises:
        EdgewiseError: E-EXPORT for an own adapter behind gates, which no file format can hold.
    """
    layers = [
        m for m in model.modules() if OWN in getattr(m, "lora_A", {}) or OWN in getattr(m, "lora_embedding_A", {})
    ]
    if not layers:
        return
    with torch.no_grad():
        moved = any(bool(p.any()) for n, p in model.named_parameters() if f".{OWN}" in n and "_B." in n)
    if not moved:
        for layer in layers:
            if OWN in layer.lora_A and isinstance(layer.lora_A[OWN], Gated):
                layer.lora_A[OWN] = layer.lora_A[OWN].inner
        model.delete_adapter(OWN)
        return
    if any(isinstance(m, Gated) for m in model.modules()):
        what = "the personal model's gates depend on each token, and no format of a model or an adapter holds them."
        fix = 'use it here (`edgewise chat --device`), take --to tensors, or train with personal.gate = "none".'
        raise EdgewiseError("E-EXPORT", what, fix)
