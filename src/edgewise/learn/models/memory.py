"""Forecast the memory of a training device from its model's configuration. No weights are read.

    forecast(folder, recipe.trainable, recipe.training, recipe.data.sequence_len, torch.float32).total

One training step is run on tensors without storage (``FakeTensorMode``), which have shapes and dtypes only. A dispatch
mode adds up the bytes that are alive at any time: weights, gradient, activations that the backward pass needs, and
temporaries. So the forecast follows the architecture, the precision, the adapters and checkpointing without a formula
for each. Experts that share one tensor are the exception: their kernels do not run on such tensors in float32, and a
formula estimates the activations of these models.

Shape suffixes: B = blocks of a micro-batch, S = tokens per block (sequence_len + 1).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models import compact
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.architecture import ModelSizes, embeddings, sizes
from edgewise.learn.models.load import TextLoss, checkpoint_layers, float32_attention
from edgewise.learn.models.quantized import quantized_layer_bytes
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection
from edgewise.strategies.depths import trained

# Tokens of a forward pass of an evaluation, and the logits that they may have. Larger passes gain nothing on a CPU.
EVAL_TOKENS, EVAL_LOGITS = 2048, 2048 * 4096
EXPERTS_NDIM = 3  # One tensor has the weights of all experts of a layer.
MARGIN, FIXED = 1.25, 44e6  # Allocators and kernels take more than tensors: a share, and so many bytes.


class MemoryForecast(NamedTuple):
    """Bytes of one training device, without Python and torch themselves.

    Attributes:
        weights: all parameters as they are held.
        vectors: gradient, optimizer state, the round's model, the update, and what is made of it.
        activations: largest sum of activations and temporaries in a step or an evaluation.
    """

    weights: float
    vectors: float
    activations: float

    @property
    def total(self) -> float:
        """All together, with a margin for allocators and kernels."""
        return MARGIN * (self.weights + self.vectors + self.activations) + FIXED


def forecast(
    folder: Path,
    section: TrainableSection,
    training: TrainingSection,
    sequence_len: int,
    arithmetic: torch.dtype,
    quantize: str = "none",
    eval_tokens: int = 0,
    own: str | None = None,
    blocks: int = 0,
) -> MemoryForecast:
    """Forecast the memory of a device with the model of a folder, from its config.json alone.

    A step and an evaluation are looked at, and the larger counts.

    Args:
        arithmetic: dtype of a step's products, and of the frozen weights.
        quantize: ``model.quantize``.
        eval_tokens: tokens of a forward pass of an evaluation at most. 0: as many as ``evaluated_at_once``.
        own: as in ``adapters.make_trainable``.
        blocks: number of last blocks that the device trains. 0: all that ``section`` trains.
    Raises:
        ModelError: E-MODEL where the configuration describes no model, E-TARGETS as ``adapters.make_trainable``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = model_without_storage(folder, section, arithmetic)
    if training.checkpointing:
        checkpoint_layers(model, folder.name)
    fused = any(p.ndim == EXPERTS_NDIM for p in model.parameters())
    if fused:
        model.set_experts_implementation("batched_mm")  # The only one that runs on tensors without storage.
    model, flat = make_trainable(model, section, bytes(32), frozen=arithmetic, own=own)
    moving = flat.spec.dim
    if blocks:
        names = trained(flat.spec, blocks)
        for s, p in flat.pairs():
            p.requires_grad_(p.requires_grad and s.name in names)
        moving = sum(s.size for s in flat.spec.segments if s.name in names)
    weights, largest = _weights(model, quantize)
    states = optimizer_states(training)
    # Five are the gradient, the round's model, the update, its copy while it is encoded, and the frame.
    vectors = 4.0 * (flat.spec.dim * 5 + moving * states)
    if fused:
        tokens = training.batch // training.accumulate * sequence_len
        return MemoryForecast(
            float(weights), vectors, float(tokens * activation_bytes_per_token(sizes(model))) + largest
        )
    s_BS = torch.zeros(training.batch // training.accumulate, sequence_len + 1, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        module_without_storage(model)
        before = live.bytes
        live.peak = 0
        model.train()
        TextLoss(arithmetic)(model, (s_BS, 1))[0].backward()
        at_once = evaluated_at_once(embeddings(model).weight.shape[0])
        rows = max(1, min(at_once, eval_tokens or at_once) // sequence_len)
        model.eval()
        with torch.no_grad():
            TextLoss(arithmetic)(model, (torch.zeros(rows, sequence_len + 1, dtype=torch.int64), 1))
    return MemoryForecast(float(weights), vectors, float(live.peak - before) + largest)


def model_without_storage(folder: Path, section: TrainableSection, arithmetic: torch.dtype) -> nn.Module:
    """Make the model of a folder without storage, from its configuration alone.

    Raises ModelError(E-MODEL) where the configuration describes no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", "check that it is complete."):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config, dtype=arithmetic if section.keeps_base else torch.float32
            )
        if compact.is_compact(folder):
            compact.put_compact_shapes(model, folder, masked=not section.adapts)
    if arithmetic is torch.bfloat16:
        float32_attention(model)
    return model


def optimizer_states(training: TrainingSection) -> int:
    """Count the numbers that the optimizer keeps for each trained parameter."""
    return {"sgd": int(bool(training.momentum)), "adamw": 2, "muon": 2}[training.optimizer]


def evaluated_at_once(vocabulary: int) -> int:
    """Return the number of tokens in a forward pass of an evaluation, by the size of the vocabulary."""
    return max(1, min(EVAL_TOKENS, EVAL_LOGITS // vocabulary))


def activation_bytes_per_token(found: ModelSizes) -> int:
    """Estimate the bytes of logits, their log-softmax and gradient in float32, and of each layer's activations."""
    return 14 * found.vocabulary + found.layers * _layer_bytes_per_token(found)


def forward_bytes_per_token(found: ModelSizes) -> int:
    """Estimate the bytes of logits, their log-softmax, and the activations of one layer at a time."""
    return 8 * found.vocabulary + _layer_bytes_per_token(found)


def _layer_bytes_per_token(found: ModelSizes) -> int:
    return 4 * (16 * found.hidden + 5 * found.inner)


def _weights(model: nn.Module, quantize: str) -> tuple[int, int]:
    """Return the bytes of all weights, and of the largest one that is decoded for a product."""
    total = sum(p.numel() * p.element_size() for p in {id(p): p for p in model.parameters()}.values())
    if quantize == "none":
        return total, 0
    head = model.get_output_embeddings()
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head and ".lora_" not in n]
    for layer in layers:
        kind: Any = quantize
        weight = layer.weight
        total += quantized_layer_bytes(kind, *weight.shape) - weight.numel() * weight.element_size()
    return total, max((layer.weight.numel() * layer.weight.element_size() for layer in layers), default=0)


def module_without_storage(model: nn.Module) -> None:
    """Give a model parameters and buffers that have a shape on the CPU, and gradients of those that train."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, x in place.items():
                if x is not None and id(x) not in made:
                    fake = torch.empty(x.shape, dtype=x.dtype)
                    made[id(x)] = nn.Parameter(fake, x.requires_grad) if isinstance(x, nn.Parameter) else fake
                    if x.requires_grad:
                        made[id(x)].grad = torch.empty(x.shape, dtype=x.dtype)
                if x is not None:
                    place[name] = made[id(x)]


class LiveBytes(TorchDispatchMode):  # type: ignore[misc]
    """Count the bytes of all storages that operations make, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.peak = 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.bytes += self._sizes[key]
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)
