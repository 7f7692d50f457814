"""Load the model of a recipe, and prepare it for training: adapters, arithmetic, processor, limits of memory.

prepared = prepare(recipe, recipe_dir)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from edgewise.core.errors import ModelError
from edgewise.core.keys import derive, root
from edgewise.core.parts import ModelParts
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import autocast_dtype, chosen
from edgewise.learn.models.adapters import choose_trainable, make_trainable
from edgewise.learn.models.cut import CutModel, cut_model
from edgewise.learn.models.load import (
    Loaded,
    checkpoint_layers,
    float32_attention,
    load,
    locate_model,
    stored_parameters,
)
from edgewise.learn.models.local_head import LocalHead, with_local_head
from edgewise.learn.models.memory import model_without_storage
from edgewise.learn.models.memory_picks import MemoryPicks
from edgewise.learn.models.part import load_part
from edgewise.learn.models.part_memory import check_part_memory
from edgewise.learn.models.suited import check_model_suits, check_text_model
from edgewise.learn.text import tokens
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import check_split_sides, split_part


class Prepared(NamedTuple):
    """A loaded model, its trained parameters, the processor and arithmetic, and the settings of devices with limits."""

    loaded: Loaded
    flat: Flat
    arithmetic: torch.dtype
    processor: torch.device
    picks: MemoryPicks
    local_head: LocalHead | None = None


def prepare(
    recipe: Recipe, recipe_dir: Path, copies: Path | None = None, worker: int = 0, limited: Sequence[DeviceId] = ()
) -> Prepared:
    """Load the recipe's model, with its adapters, and lay out the trained parameters. Raises as ``trainer.make``.

    The model is on the CPU. Its trainer moves it.

    Args:
        copies: folder for a quantized copy of the base. None keeps none.
        limited: devices whose limits of memory decide settings. A base that none reads in float32 is in bfloat16.
    """
    processor = chosen(recipe.engine.device, worker)
    folder = locate_model(recipe.model.base, recipe_dir)[0]
    arithmetic = autocast_dtype(recipe.model.precision, stored_parameters(folder), processor)
    picks = MemoryPicks(limited, recipe, folder, arithmetic)
    if arithmetic not in picks.arithmetics:
        (arithmetic,) = picks.arithmetics
    lora = recipe.trainable.keeps_base  # A base that stays as it is can be read in 16 bits at once.
    dtype = arithmetic if lora else torch.float32
    loaded = load(recipe.model.base, recipe_dir, dtype, recipe.model.quantize, copies)
    check_model_suits(loaded, recipe)
    if torch.bfloat16 in {arithmetic, *picks.arithmetics} and processor.type == "cpu":
        float32_attention(loaded.model)
    if recipe.training.checkpointing:
        checkpoint_layers(loaded.model, loaded.name)
    key, own = derive(root(recipe.seed), "model"), recipe.personal.own_adapter
    made, flat = make_trainable(loaded.model, recipe.trainable, key, arithmetic, own)
    local_head = None
    if recipe.split.local:
        local_head, flat = with_local_head(made, flat)
        local_head.to(processor)
    return Prepared(loaded._replace(model=made), flat, arithmetic, processor, picks, local_head)


class PreparedPart(NamedTuple):
    """The device's part of a split model, prepared for training.

    Attributes:
        prepared: as ``Prepared``. Parameters behind the cut have no storage, and ``flat`` is the device's part.
        parts: the layouts of both parts.
        stages: of the model, of which those of the device can compute.
    """

    prepared: Prepared
    parts: ModelParts
    stages: CutModel


def prepare_part(recipe: Recipe, recipe_dir: Path, device: DeviceId, worker: int = 0) -> PreparedPart:
    """Load the device's part of a recipe's split model. The weights of the rest need not be on this machine.

    The model of the recipe was tested where it was submitted: a forward pass needs all of it.

    Args:
        device: whose limit of memory the part has to fit.
    Raises:
        ModelError: as ``prepare``. E-CUT, E-MODEL and E-QUANTIZE as ``learn.models.part.load_part``. E-MEMORY as
            ``learn.models.part_memory.check_part_memory``, before any weight is read.
    """
    processor, split = chosen(recipe.engine.device, worker), recipe.split
    folder, name = locate_model(recipe.model.base, recipe_dir)
    shapes = model_without_storage(folder, recipe.trainable, torch.float32)
    arithmetic = autocast_dtype(recipe.model.precision, sum(p.numel() for p in shapes.parameters()), processor)
    check_part_memory(recipe, [device], folder, arithmetic)
    if recipe.model.quantize == "int8":
        what = 'model.quantize = "int8" on a device that has a part of the model: parts are read in NF4 or as they are.'
        raise ModelError("E-QUANTIZE", what, 'write model.quantize = "nf4".')
    dtype = arithmetic if recipe.trainable.keeps_base else torch.float32
    part = load_part(folder, split.cut, split.shape, "device", dtype, recipe.model.quantize)
    loaded = Loaded(part.model, tokens.load_tokenizer(folder), name, folder)
    check_text_model(loaded, recipe)
    if arithmetic is torch.bfloat16 and processor.type == "cpu":
        float32_attention(loaded.model)
    if recipe.training.checkpointing:
        checkpoint_layers(loaded.model, name)
    key = derive(root(recipe.seed), "model")
    model, named, _ = choose_trainable(loaded.model, recipe.trainable, key, arithmetic, shapes=shapes)
    parts = split_part(recipe, Spec.of([(n, p.shape, "float32") for n, p in named]))
    assert parts is not None  # The recipe has a cut.
    stages, own = cut_model(model, split.cut, split.shape), {s.name for s in parts.shared.segments}
    check_split_sides([n for n, _ in named], set(stages.sides(model)[0]), own, type(model).__name__)
    after = {n for (before, _), (n, _) in pairwise(named) if before not in own}
    flat = Flat([(n, p) for n, p in named if n in own], apart=after & own)
    picks = MemoryPicks((), recipe, folder, arithmetic)
    return PreparedPart(Prepared(loaded._replace(model=model), flat, arithmetic, processor, picks), parts, stages)
