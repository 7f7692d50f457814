"""Forecast the memory of a device that has one part of a split model, from the model's config.json alone.

forecast_part_memory(recipe, folder, torch.float32).total         # bytes beside Python and torch
check_part_memory(recipe, devices, folder, torch.float32)         # raises E-MEMORY for a device without room for its
part
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.architecture import embeddings, text_config
from edgewise.learn.models.cut import CutModel, cut_model, stage_parameters
from edgewise.learn.models.load import TextLoss
from edgewise.learn.models.local_head import LocalHead
from edgewise.learn.models.memory import (
    LiveBytes,
    MemoryForecast,
    model_without_storage,
    module_without_storage,
    optimizer_states,
)
from edgewise.learn.models.quantized import quantized_layer_bytes
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import planned_rest_names

MB = 1e6


def forecast_part_memory(recipe: Recipe, folder: Path, arithmetic: torch.dtype) -> MemoryForecast:
    """Forecast the memory of a device's part in a session.

    Its weights are those of its stages alone. Activations are those of ``split.window`` micro-batches that are on their
    way at once.

    Raises:
        ModelError: E-MODEL where the configuration describes no model, E-CUT as ``cut``.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    section, training, split = recipe.trainable, recipe.training, recipe.split
    model = model_without_storage(folder, section, arithmetic)
    model, flat = make_trainable(model, section, bytes(32), frozen=arithmetic)
    stages = cut_model(model, split.cut, split.shape, shared=split.cached)
    rest = set(planned_rest_names(recipe, flat.spec))
    trained = sum(s.size for s in flat.spec.segments if s.name not in rest)
    head = LocalHead(int(text_config(model.config).hidden_size)) if split.local else None
    trained += 0 if head is None else sum(p.numel() for p in head.parameters())
    vectors = 0.0 if split.device_part == "frozen" else 4.0 * trained * (5 + optimizer_states(training))
    weights = _weights(stages, recipe.model.quantize)
    rows = training.batch // training.accumulate
    s_BS = torch.zeros(rows, recipe.data.sequence_len + 1, dtype=torch.int64)
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as live:
        module_without_storage(model)
        before, live.peak = live.bytes, 0
        model.train()
        _train(stages, TextLoss(arithmetic), s_BS, min(split.window, training.accumulate), model, head, split.cached)
    return MemoryForecast(weights, vectors, float(live.peak - before))


def check_part_memory(recipe: Recipe, devices: Sequence[str], folder: Path, arithmetic: torch.dtype) -> None:
    """Refuse a device whose limit of memory has no room for its part of a split model.

    Raises:
        ModelError: E-MEMORY for the device with the lowest limit.
    """
    limits = {limit: device for device in devices if (limit := recipe.engine.memory_mb(device))}
    if not limits:
        return
    needed, least = forecast_part_memory(recipe, folder, arithmetic).total / MB, min(limits)
    if needed <= least:
        return
    what = (
        f"the part of device {limits[least]!r:.60}, up to block {recipe.split.cut}, needs {needed:,.0f} MB in a "
        f"session, and its limit is {least:,.0f} MB."
    )
    fits = [
        f"split.cut = {block} ({smaller:,.0f} MB)"
        for block in range(recipe.split.cut - 1, 0, -1)
        if (smaller := forecast_part_memory(_with_cut(recipe, block), folder, arithmetic).total / MB) <= least
    ]
    ways = "raise training.accumulate, lower training.batch, train adapters, or leave the device out"
    raise ModelError("E-MEMORY", what, f"write {fits[0]}, or {ways}." if fits else f"{ways}.")


def _with_cut(recipe: Recipe, block: int) -> Recipe:
    return recipe.model_copy(update={"split": recipe.split.model_copy(update={"cut": block})})


def _train(
    stages: CutModel, loss: TextLoss, s_BS: Tensor, micros: int, model: nn.Module, head: LocalHead | None, cached: bool
) -> None:
    """Run the device's stages forward and backward for the micro-batches that are on their way at once."""
    x_BT, _, positions_BT = loss.inputs(s_BS)
    if cached and head is None:
        with torch.no_grad():
            stages.device(x_BT, positions_BT)
        return
    if head is not None:
        head(stages.device(x_BT, positions_BT), embeddings(model).weight).float().log_softmax(-1).sum().backward()
        return
    sent: list[Any] = [stages.device(x_BT, positions_BT) for _ in range(micros)]
    if stages.top is not None:
        back = torch.empty_like(sent[0]).requires_grad_()
        stages.top(back, positions_BT).float().log_softmax(-1).sum().backward()
    while sent:
        h_BTC = sent.pop(0)
        if h_BTC.requires_grad:
            h_BTC.backward(torch.empty_like(h_BTC))


def _weights(stages: CutModel, quantize: str) -> float:
    """Return the bytes of the weights of a device's stages."""
    held = {id(p): p for p in stage_parameters(stages.on_device())}
    total = float(sum(p.numel() * p.element_size() for p in held.values()))
    if quantize == "none":
        return total
    kind: Any = quantize
    named = [(n, m) for stage in stages.on_device() for n, m in stage.named_modules() if isinstance(m, nn.Linear)]
    for layer in {id(m.weight): m for n, m in named if ".lora_" not in n and "lm_head" not in n}.values():
        total += quantized_layer_bytes(kind, *layer.weight.shape) - layer.weight.numel() * layer.weight.element_size()
    return total
