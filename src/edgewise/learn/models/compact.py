"""Folders of models whose linear layers have a mask or two factors, stored in the bytes that they need.

    write_compact(model, folder, torch.bfloat16)        # compact.safetensors and compact.json beside config.json
    model = read_compact(folder, torch.float32)         # masked layers are ordinary ones, factored ones stay factored

A masked matrix is stored as its weights inside the mask and one bit for each weight: at 16 bits and half of the
weights, 9 / 16 of the dense bytes. A factored one is stored as its factors. ``transformers`` cannot read such a folder.
``write_dense_model`` writes one that it can: weights with zeros, or products, and the masks in a file beside them.
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.kernels.bits import pack_bits, unpack_bits
from edgewise.learn.models.smaller_layers import (
    FactoredLinear,
    MaskedLinear,
    densify_layers,
    layer_masks,
    replace_layers,
    set_layer_mask,
)

WEIGHTS, LAYERS, MASKS = "compact.safetensors", "compact.json", "masks.safetensors"
VALUES, BITS = ".values", ".bits"
FIX = "write the model again with `edgewise shrink`."


class CompactLayers(NamedTuple):
    """The smaller layers of a folder, by name.

    Attributes:
        kept: number of weights inside the mask of each masked layer.
        ranks: rank of each factored layer.
        parameters: number of parameters of the dense model.
    """

    kept: dict[str, int]
    ranks: dict[str, int]
    parameters: int


def is_compact(folder: Path) -> bool:
    """Return True for a folder that ``write_compact`` wrote."""
    return (folder / LAYERS).is_file()


def write_compact(model: Any, folder: Path, dtype: torch.dtype) -> int:
    """Write a model with masked or factored layers into a folder, without its tokenizer.

    Args:
        dtype: dtype of the stored weights.
    Returns:
        Bytes of the file with the weights.
    """
    by_name, tensors, kept = layer_masks(model), dict[str, Tensor](), dict[str, int]()
    for name, p in model.named_parameters():  # Tied weights come once.
        owner, _, last = name.rpartition(".")
        value = p.detach().to(dtype)
        if last == "weight" and owner in by_name:
            mask_OI = by_name[owner]
            tensors[f"{name}{VALUES}"] = value[mask_OI].contiguous()
            tensors[f"{name}{BITS}"] = _packed(mask_OI)
            kept[owner] = int(mask_OI.sum())
        else:
            tensors[name] = value.contiguous()
    ranks = {n: m.right.out_features for n, m in model.named_modules() if isinstance(m, FactoredLinear)}
    dense = sum(p.numel() for p in model.parameters()) + sum(
        m.left.out_features * m.right.in_features - m.left.weight.numel() - m.right.weight.numel()
        for m in model.modules()
        if isinstance(m, FactoredLinear)
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(model, folder, dtype)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    plain = {"format": 1, "parameters": dense, "kept": kept, "ranks": ranks}
    (folder / LAYERS).write_text(json.dumps(plain, indent=1), encoding="utf-8")
    return (folder / WEIGHTS).stat().st_size


def write_dense_model(model: Any, folder: Path, dtype: torch.dtype) -> int:
    """Write a model for ``transformers``, with masks beside it where it has them. It changes the model.

    Returns:
        Bytes of the files with weights and masks.
    """
    by_name = {f"{name}.weight{BITS}": _packed(mask) for name, mask in layer_masks(model).items()}
    densify_layers(model).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if by_name:
        save_file(by_name, folder / MASKS)
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def compact_layers(folder: Path) -> CompactLayers:
    """Read the smaller layers of a compact folder. Raises ModelError(E-MODEL) where the file is damaged."""
    path = folder / LAYERS
    with foreign(ModelError, "E-MODEL", f"{path} cannot be read", FIX):
        plain = json.loads(path.read_bytes())
        if plain["format"] != 1:
            raise ModelError("E-MODEL", f"{path} has format {plain['format']}, and this version reads 1.", FIX)
        kept, ranks = ({str(n): int(v) for n, v in plain[key].items()} for key in ("kept", "ranks"))
        return CompactLayers(kept, ranks, int(plain["parameters"]))


def read_compact(folder: Path, dtype: torch.dtype) -> nn.Module:
    """Read a model from its compact folder.

    Returns:
        The model in evaluation mode. Masked layers are ordinary ones with a buffer ``mask`` and zeros outside it.
    Raises:
        ModelError: E-MODEL where a file is missing or damaged, or a tensor has no place or another shape.
    """
    found = compact_layers(folder)
    model = _skeleton(folder, dtype)
    _put_factors(model, found, folder)
    wanted: dict[str, nn.Parameter] = dict(model.named_parameters())
    with (
        foreign(ModelError, "E-MODEL", f"{folder / WEIGHTS} cannot be read", FIX),
        safe_open(folder / WEIGHTS, "pt") as f,
    ):
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (f is not a dict)
    with torch.no_grad():
        for name, p in wanted.items():
            owner = name.removesuffix(".weight")
            if owner in found.kept:
                layer: Any = model.get_submodule(owner)
                mask = _unpacked(tensors.pop(f"{name}{BITS}", None), p.shape, folder)
                values = tensors.pop(f"{name}{VALUES}", None)
                if values is None or values.shape != (int(mask.sum()),):
                    raise ModelError("E-MODEL", f"{folder}: {name} has another number of weights than its mask.", FIX)
                p.zero_()
                p[mask] = values.to(p.dtype)
                set_layer_mask(layer, mask)
                continue
            value = tensors.pop(name, None)
            if value is None or value.shape != p.shape:
                raise ModelError("E-MODEL", f"{folder}: {name} is missing or has another shape.", FIX)
            p.copy_(value)
    if tensors:
        raise ModelError("E-MODEL", f"{folder}: no layer has a place for {next(iter(tensors))}.", FIX)
    return model.eval()


def put_compact_shapes(model: nn.Module, folder: Path, masked: bool) -> None:
    """Give a model without values the layers of a compact folder, for forecasts.

    Args:
        masked: masked layers hold the weights inside the mask alone, as where they are trained.
    """
    found = compact_layers(folder)
    _put_factors(model, found, folder)
    if masked:
        made: dict[str, nn.Module] = {}
        for name, kept in found.kept.items():
            old: Any = model.get_submodule(name)
            made[name] = MaskedLinear(old.out_features, old.in_features, kept, old.bias is not None, old.weight.device)
        replace_layers(model, made)


def attach_masks(model: nn.Module, folder: Path) -> nn.Module:
    """Read the masks beside a dense model (``write_dense_model``), and set all weights outside them to zero.

    Raises:
        ModelError: E-MODEL where the file is damaged or of another model.
    """
    path = folder / MASKS
    if not path.is_file():
        return model
    with foreign(ModelError, "E-MODEL", f"{path} cannot be read", FIX), safe_open(path, "pt") as f:
        tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (f is not a dict)
    for name, bits in tensors.items():
        owner = name.removesuffix(f".weight{BITS}")
        layer = dict(model.named_modules()).get(owner)
        if not isinstance(layer, nn.Linear):
            raise ModelError("E-MODEL", f"{path}: the model has no linear layer {owner}.", FIX)
        mask = _unpacked(bits, layer.weight.shape, folder)
        set_layer_mask(layer, mask)
        with torch.no_grad():
            layer.weight.masked_fill_(~mask, 0.0)
    return model


def _skeleton(folder: Path, dtype: torch.dtype) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", "check that it is complete."):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: nn.Module = AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=dtype)
    return model


def _put_factors(model: nn.Module, found: CompactLayers, folder: Path) -> None:
    known, made = dict(model.named_modules()), dict[str, nn.Module]()
    for name, rank in found.ranks.items():
        old = known.get(name)
        if not isinstance(old, nn.Linear) or not 1 <= rank <= min(old.weight.shape):
            raise ModelError("E-MODEL", f"{folder}: {name} is no linear layer that could have rank {rank}.", FIX)
        layer = FactoredLinear(*old.weight.shape, rank, old.bias is not None, old.weight.device)
        made[name] = layer.to(old.weight.dtype)
    for name in found.kept:
        if not isinstance(known.get(name), nn.Linear):
            raise ModelError("E-MODEL", f"{folder}: {name} is no linear layer, and has a mask.", FIX)
    replace_layers(model, made)


def _write_config(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the configuration as ``save_pretrained`` does, with the dtype of the stored weights."""
    before = getattr(model.config, "dtype", None)
    model.config.dtype = dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.config.dtype = before
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)


def _packed(mask_OI: Tensor) -> Tensor:
    bits = pack_bits(mask_OI.reshape(-1).to(torch.uint8).numpy(), 1)
    return torch.from_numpy(np.frombuffer(bits, np.uint8).copy())


def _unpacked(bits: Tensor | None, shape: torch.Size, folder: Path) -> Tensor:
    values = None
    if bits is not None and bits.dtype is torch.uint8 and bits.ndim == 1:
        values = unpack_bits(bits.numpy().data, 1, prod(shape))
    if values is None:
        raise ModelError("E-MODEL", f"{folder}: a mask is missing or of another size than its matrix.", FIX)
    return torch.from_numpy(values.copy()).bool().view(shape)
