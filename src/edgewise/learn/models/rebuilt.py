"""Rebuild the model of a run from its base and the run's vector, and refuse a base that is not the run's.

one = rebuild(recipe, base, recipe_dir, facts, params, directions)
one.flat.write(one.params)              # one.model is the trained model
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from edgewise.codecs.select.cut_parts import LOCAL_HEAD
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import derive, root
from edgewise.core.vector import Array, Vector, pack
from edgewise.learn.flat import Flat
from edgewise.learn.models import quantized
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.fingerprint import frozen_digest
from edgewise.learn.models.load import Loaded, load
from edgewise.learn.models.local_head import with_initial_head
from edgewise.learn.zeroth_order import base_model_digest, rebuilt_from_coefficients
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import split_part
from edgewise.strategies.base import Directions

AGAIN = "put the base model back as it was when the run began, or name its folder with --base."


class RebuiltModel(NamedTuple):
    """A run's model in float32 with the base's parameters, and the trained parameters to write into it.

    A quantized base has its decoded weights, which are those that the adapters were trained on.

    Attributes:
        loaded: the base as it was read.
        model: the module to run, with adapters where the run trained them.
        flat: the trained parameters of ``model``. They still have the base's values.
        params: float32[d], the trained values.
    """

    loaded: Loaded
    model: nn.Module
    flat: Flat
    params: Vector


def rebuild(
    recipe: Recipe,
    base: str,
    folder: Path,
    facts: Mapping[str, Any],
    params: Vector | Mapping[str, Array],
    directions: Directions | None,
    cache_dir: Path | None = None,
) -> RebuiltModel:
    """Rebuild the model of a run's vector, as the program itself evaluates it.

    Args:
        base: the base model, as ``model.base``.
        folder: the folder where a relative ``base`` starts.
        facts: facts of the run, which identify the base that it trained on. What they lack is not compared.
        params: the run's vector, its trained tensors by name, or a device's whole model. Where a part of the model
            stays on its device, the run's vector gets the part that the seed decides.
        directions: the directions, where the vector holds coefficients. None where it holds parameters.
        cache_dir: folder with the run's quantized copy of the base. None keeps none.
    Raises:
        EdgewiseError: E-EXPORT where the base is not the run's.
        ModelError: E-MODEL, E-MODEL-REMOTE.
    """
    loaded, model, flat = _start(recipe, base, folder, torch.float32, cache_dir)
    parts = own_part(recipe, flat.spec) or split_part(recipe, flat.spec)
    spec, initial = flat.spec, flat.read()
    if parts is not None:
        spec, (initial, own) = parts.shared, parts.split(initial)
    if recipe.split.local:  # The run's vector has the small head of devices at its end, and the model has none.
        initial, params = with_initial_head(initial, model), _without_head(params, flat)
    if isinstance(params, Mapping):
        if {name: x.shape for name, x in params.items()} != {s.name: s.shape for s in spec.segments}:
            raise EdgewiseError("E-EXPORT", f"the trained tensors are not those of {loaded.name}.", AGAIN)
        params = pack(params, spec)
    if parts is not None and params.shape == (spec.dim,):
        params = parts.join(params, own)
    if directions is not None:
        params = _from_directions(recipe, base, folder, facts, params, directions)
    if params.shape != (flat.spec.dim,):
        what = f"the run trained {params.size} parameters, {loaded.name} has {flat.spec.dim}."
        raise EdgewiseError("E-EXPORT", what, AGAIN)
    arithmetic = getattr(torch, facts.get("precision") or "float32")
    same = [facts.get("model_fingerprint") in (None, frozen_digest(model, arithmetic))]
    if not recipe.trainable.keeps_base and directions is None:  # The fingerprint does not cover trained parameters.
        same.append(facts.get("initial_sha256") in (None, vector.digest(vector.to_bytes(initial))))
    if not all(same):
        raise EdgewiseError("E-EXPORT", f"{loaded.name} has other weights than the run trained on.", AGAIN)
    if recipe.model.quantized:
        plain = quantized.decode_quantized(loaded.folder, model.unload())
        key, own = derive(root(recipe.seed), "model"), recipe.personal.own_adapter
        model, flat = make_trainable(plain, recipe.trainable, key, torch.float32, own)
        loaded = loaded._replace(model=plain)
    return RebuiltModel(loaded, model, flat, params)


def _without_head(params: Vector | Mapping[str, Array], flat: Flat) -> Vector | Mapping[str, Array]:
    """Leave out the local head of a split model's devices."""
    if isinstance(params, Mapping):
        return {name: x for name, x in params.items() if not name.startswith(LOCAL_HEAD)}
    return params[: flat.spec.dim]


def _start(
    recipe: Recipe, base: str, folder: Path, arithmetic: torch.dtype, cache_dir: Path | None = None
) -> tuple[Loaded, nn.Module, Flat]:
    dtype = arithmetic if recipe.trainable.keeps_base else torch.float32
    loaded = load(base, folder, dtype, recipe.model.quantize, cache_dir)
    key, own = derive(root(recipe.seed), "model"), recipe.personal.own_adapter
    return loaded, *make_trainable(loaded.model, recipe.trainable, key, arithmetic, own)


def _from_directions(
    recipe: Recipe, base: str, folder: Path, facts: Mapping[str, Any], params: Vector, directions: Directions
) -> Vector:
    """Compute the parameters from the run's coefficients."""
    # The model is read in the run's own arithmetic, because the start of LoRA's A is drawn in it.
    loaded, _, flat = _start(recipe, base, folder, getattr(torch, facts.get("precision") or "float32"))
    if facts.get("base_sha256") != base_model_digest(flat.spec, flat.read()):
        what = f"{loaded.name} has other parameters than the run's directions start from."
        raise EdgewiseError("E-EXPORT", what, AGAIN)
    return rebuilt_from_coefficients(flat.read(), params, directions, root(recipe.seed))
