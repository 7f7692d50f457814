"""Load one side of a cut model. The weights of the other side are never read and take no memory.

part = load_part(folder, 2, "U", "device")
h_BTC = part.stages.device(ids_BT)                    # part.stages.server cannot compute here
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models import hub
from edgewise.learn.models.cut import Cut, Shape, cut
from edgewise.learn.models.modules import plain_name

INCOMPLETE = "check that the folder is complete."


class LoadedPart(NamedTuple):
    """One side of a model.

    Attributes:
        model: the whole model's modules. Parameters of the other side are on torch's device ``meta``.
        stages: its stages, of which those of the side can compute.
        named: the side's parameters with their names, each once.
    """

    model: nn.Module
    stages: Cut
    named: list[tuple[str, nn.Parameter]]


def load_part(
    folder: Path, block: int, shape: Shape, side: Literal["device", "server"], dtype: torch.dtype = torch.float32
) -> LoadedPart:
    """Load one side of a causal language model.

    Args:
        folder: a folder with config.json and safetensors, as ``learn.models.load.located`` returns it.
        block, shape: as in ``learn.models.cut.cut``.
        dtype: dtype of the weights.
    Raises:
        ModelError: E-MODEL for a folder that is incomplete, E-CUT as ``cut``.
    Guarantees: both sides together are the model of the folder.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)
        model.tie_weights()
    stages = cut(model, block, shape)
    here = set(stages.sides(model)[0 if side == "device" else 1])
    wanted = {name: p for name, p in model.named_parameters() if plain_name(name) in here}
    read = _read(folder, set(wanted), f"{model.base_model_prefix}.", dtype)
    made = {id(p): nn.Parameter(read[name]) for name, p in wanted.items()}
    for module in model.modules():
        for name, p in module._parameters.items():
            module._parameters[name] = made.get(id(p), p)
    return LoadedPart(model, stages, [(plain_name(n), made[id(p)]) for n, p in wanted.items()])


def _read(folder: Path, names: set[str], prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Read these tensors, also where they are stored without the model's prefix. Raises ModelError(E-MODEL)."""
    found: dict[str, torch.Tensor] = {}
    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
        for path in hub.weights(folder):
            with safe_open(path, "pt") as f:
                stored = set(f.keys())
                for name in names - found.keys():
                    key = name if name in stored else name.removeprefix(prefix)
                    if key in stored:
                        found[name] = f.get_tensor(key).to(dtype, copy=True)
    if missing := sorted(names - found.keys()):
        raise ModelError("E-MODEL", f"{folder} has no weights {missing[0]}.", INCOMPLETE)
    return found
