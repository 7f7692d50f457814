"""Load one side of a cut model. The weights of the other side are never read and take no memory.

part = load_part(folder, 2, "U", "device")
h_BTC = part.stages.device(ids_BT)                    # part.stages.server cannot compute here
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models import hub, quantized
from edgewise.learn.models.blocks import decoder_blocks
from edgewise.learn.models.cut import CutModel, Shape, cut_model
from edgewise.learn.models.modules import plain_parameter_name
from edgewise.learn.models.smaller_layers import replace_layers

INCOMPLETE = "check that the folder is complete."
Side = Literal["device", "server"]


class LoadedPart(NamedTuple):
    """One side of a model.

    Attributes:
        model: the whole model's modules. Parameters of the other side are on torch's device ``meta``.
        stages: its stages, of which those of the side can compute.
        named: the side's parameters with their names, each once.
    """

    model: nn.Module
    stages: CutModel
    named: list[tuple[str, nn.Parameter]]


def load_part(
    folder: Path,
    block: int,
    shape: Shape,
    side: Side,
    dtype: torch.dtype = torch.float32,
    quantize: Literal["none", "nf4"] = "none",
) -> LoadedPart:
    """Load one side of a causal language model.

    Args:
        folder: a folder with config.json and safetensors, as ``learn.models.load.locate_model`` returns it.
        block, shape: as in ``learn.models.cut.cut_model``.
        dtype: dtype of the weights.
        quantize: "nf4" stores the linear layers of the side's blocks in 4 bits, one after another as they are read.
            They are frozen, for adapters on top, and not in ``named``.
    Raises:
        ModelError: E-MODEL for a folder that is incomplete, E-CUT as ``cut``, E-QUANTIZE for blocks with layers of
            another kind or size.
        EdgewiseError: E-DEPENDENCY without bitsandbytes.
    Guarantees: both sides together are the model of the folder. The codes are those of ``quantized.load_quantized``.
    """
    model, stages = empty_model_parts(folder, block, shape, dtype)
    wanted = part_parameter_names(model, stages, side)
    if quantize == "nf4":
        for name in _block_layers(model, set(wanted)):
            _code(model, name, folder, dtype)
            for key in ("weight", "bias"):
                wanted.pop(f"{name}.{key}", None)
    read = _read(folder, set(wanted), model, dtype)
    made = {id(p): nn.Parameter(read[name]) for name, p in wanted.items()}
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = made.get(id(p), p)
    return LoadedPart(model, stages, [(plain_parameter_name(n), made[id(p)]) for n, p in wanted.items()])


def empty_model_parts(
    folder: Path, block: int, shape: Shape, dtype: torch.dtype = torch.float32
) -> tuple[Any, CutModel]:
    """Make a model without storage for its parameters, from config.json alone, and its stages. Raises as
    ``load_part``."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)
        model.tie_weights()
    return model, cut_model(model, block, shape)


def part_parameter_names(model: nn.Module, stages: CutModel, side: Side) -> dict[str, nn.Parameter]:
    """Return the parameters of one side by name, each once."""
    here = set(stages.sides(model)[0 if side == "device" else 1])
    return {name: p for name, p in model.named_parameters() if plain_parameter_name(name) in here}


def stored_parameter_name(name: str, model: Any, stored: Collection[str]) -> str | None:
    """Return the name under which a folder stores a parameter: its own, or without the model's prefix.

    None where the folder does not have it.
    """
    bare = name.removeprefix(f"{model.base_model_prefix}.")
    return next((key for key in (name, bare) if key in stored), None)


def _block_layers(model: Any, names: set[str]) -> list[str]:
    """List the linear layers of blocks among these parameters. Raises ModelError(E-QUANTIZE) for other kinds."""
    prefix, blocks = decoder_blocks(model)
    found = []
    for name, module in blocks.named_modules(prefix=prefix):
        if f"{name}.weight" in names and module.weight.ndim > 1:
            if type(module) is not nn.Linear:
                what = f"{name} is a {type(module).__name__}, and a part in NF4 has ordinary linear layers."
                raise ModelError("E-QUANTIZE", what, "take another model, or leave the part as it is.")
            found.append(name)
    return found


def _code(model: Any, name: str, folder: Path, dtype: torch.dtype) -> None:
    """Read one linear layer and put it into the model in NF4."""
    layer = model.get_submodule(name)
    keys = {f"{name}.{key}" for key, p in layer.named_parameters()}
    for key, value in _read(folder, keys, model, None).items():
        value = value.to(dtype) if key.endswith(".bias") else value  # Codes are those of the stored weights.
        setattr(layer, key.rpartition(".")[2], nn.Parameter(value, requires_grad=False))
    replace_layers(model, {name: quantized.nf4_layer(layer, dtype)})


def _read(folder: Path, names: set[str], model: Any, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    """Read these tensors, also where they are stored without the model's prefix. Raises ModelError(E-MODEL)."""
    found: dict[str, torch.Tensor] = {}
    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
        for path in hub.hub_weights(folder):
            with safe_open(path, "pt") as f:
                stored = set(f.keys())
                for name in names - found.keys():
                    if (key := stored_parameter_name(name, model, stored)) is not None:
                        value = f.get_tensor(key)
                        found[name] = value.to(value.dtype if dtype is None else dtype, copy=True)
    if missing := sorted(names - found.keys()):
        raise ModelError("E-MODEL", f"{folder} has no weights {missing[0]}.", INCOMPLETE)
    return found
