"""Load the model of a recipe, and prepare it for training: adapters, arithmetic, processor, limits of memory.

prepared = prepare(recipe, recipe_dir)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from edgewise.core.keys import derive, root
from edgewise.core.training import DeviceId
from edgewise.learn.flat import Flat
from edgewise.learn.hardware import autocast_dtype, chosen
from edgewise.learn.models.adapters import trainable
from edgewise.learn.models.load import Loaded, checkpoint, float32_attention, load, located, stored_parameters
from edgewise.learn.models.local_head import LocalHead, with_local_head
from edgewise.learn.models.memory_picks import MemoryPicks
from edgewise.learn.models.suited import check
from edgewise.plan.recipe.recipe import Recipe


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
    folder = located(recipe.model.base, recipe_dir)[0]
    arithmetic = autocast_dtype(recipe.model.precision, stored_parameters(folder), processor)
    picks = MemoryPicks(limited, recipe, folder, arithmetic)
    if arithmetic not in picks.arithmetics:
        (arithmetic,) = picks.arithmetics
    lora = recipe.trainable.keeps_base  # A base that stays as it is can be read in 16 bits at once.
    dtype = arithmetic if lora else torch.float32
    loaded = load(recipe.model.base, recipe_dir, dtype, recipe.model.quantize, copies)
    check(loaded, recipe)
    if torch.bfloat16 in {arithmetic, *picks.arithmetics} and processor.type == "cpu":
        float32_attention(loaded.model)
    if recipe.training.checkpointing:
        checkpoint(loaded.model, loaded.name)
    key, own = derive(root(recipe.seed), "model"), recipe.personal.own_adapter
    made, flat = trainable(loaded.model, recipe.trainable, key, arithmetic, own)
    local_head = None
    if recipe.split.local:
        local_head, flat = with_local_head(made, flat)
        local_head.to(processor)
    return Prepared(loaded._replace(model=made), flat, arithmetic, processor, picks, local_head)
