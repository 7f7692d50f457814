"""Weights in one file for each block, so that a device downloads and reads those of its own part of a split model.

    files = write_shards(folder, dest)                   # model-00001-of-00007.safetensors, ..., and their index
    names = part_files(folder, 2, "U")                   # names of the files that the device's part is in

Each tensor outside the blocks, such as the embedding, has a file of its own. The files do not depend on the cut. It is
the layout of ``transformers`` for large models, which every reader knows.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from edgewise.core.blocks import block_of
from edgewise.core.errors import ModelError, StoreError
from edgewise.core.foreign import foreign
from edgewise.learn.models import compact, hub, quantized
from edgewise.learn.models.cut import Shape
from edgewise.learn.models.part import INCOMPLETE, empty_model_parts, part_parameter_names, stored_parameter_name

DENSE = "take a model with plain weights: `edgewise shrink --by unpack` writes one of masked and factored layers."


def check_whole_tensors(folder: Path) -> None:
    """Refuse a folder whose tensors are no parameters, so that a part of it cannot be read by itself.

    Raises ModelError(E-MODEL) for masked and factored layers, and for weights that are stored in few bits.
    """
    stored = quantized.quantized_kind(folder)
    what = ""
    if compact.is_compact(folder) or (folder / compact.MASKS).is_file():
        what = f"{folder} has masked or factored layers, which are not read in parts."
    elif stored != "none":
        what = f"{folder} is quantized ({stored}), and its weights are not read in parts."
    if what:
        raise ModelError("E-MODEL", what, DENSE)


def write_shards(folder: Path, dest: Path) -> list[Path]:
    """Write the weights of a model in one file for each block, with the index. One file is in memory at a time.

    Args:
        folder: a folder with config.json and safetensors. dest: an empty folder.
    Returns:
        The files. Equal weights give equal bytes.
    Raises:
        ModelError: E-MODEL as ``check_whole_tensors``, and for weights that cannot be read.
        StoreError: E-DISK where the files cannot be written.
    """
    check_whole_tensors(folder)
    groups = defaultdict[int | str, list[str]](list)
    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
        places = _places(folder)
    for name in sorted(places):
        number = block_of(name)
        groups[name if number is None else number].append(name)
    files, weight_map, size = list[Path](), dict[str, str](), 0
    for at, names in enumerate(groups.values(), 1):
        tensors = {}
        with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", INCOMPLETE):
            for name in names:
                with safe_open(places[name], "pt") as f:
                    tensors[name] = f.get_tensor(name)
        size += sum(x.numel() * x.element_size() for x in tensors.values())
        path = dest / f"model-{at:05}-of-{len(groups):05}.safetensors"
        with foreign(StoreError, "E-DISK", f"{path} cannot be written", "free some room there, or set TMPDIR."):
            save_file(tensors, path, {"format": "pt"})
        weight_map |= dict.fromkeys(names, path.name)
        files.append(path)
    index = dest / hub.INDEX
    document = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    with foreign(StoreError, "E-DISK", f"{index} cannot be written", "free some room there, or set TMPDIR."):
        index.write_text(json.dumps(document, indent=1) + "\n", encoding="ascii")
    return [*files, index]


def part_files(folder: Path, block: int, shape: Shape) -> set[str] | None:
    """Name the files of weights that a device's part is in. None where the folder has no index: one file has them all.

    Args:
        folder: config.json and the index. The weights need not be there yet.
        block, shape: as in ``learn.models.cut.cut_model``.
    Raises:
        ModelError: E-MODEL for a folder that is incomplete or an index without a weight of the part. E-CUT as ``cut``.
    """
    path = folder / hub.INDEX
    if not path.is_file():
        return None
    with foreign(ModelError, "E-MODEL", f"{path} cannot be read", INCOMPLETE):
        weight_map = dict(json.loads(path.read_bytes())["weight_map"])
        stored = set(map(str, weight_map))
    model, stages = empty_model_parts(folder, block, shape)
    found = set[str]()
    for name in part_parameter_names(model, stages, "device"):
        key = stored_parameter_name(name, model, stored)
        if key is None:
            raise ModelError("E-MODEL", f"{path} names no file for the weights {name}.", INCOMPLETE)
        found.add(str(weight_map[key]))
    return found


def _places(folder: Path) -> dict[str, Path]:
    """Find the file of each tensor: those of the index where there is one."""
    if (folder / hub.INDEX).is_file():
        named = json.loads((folder / hub.INDEX).read_bytes())["weight_map"]
        return {str(name): folder / Path(str(file)).name for name, file in named.items()}
    found: dict[str, Path] = {}
    for path in hub.hub_weights(folder):
        with safe_open(path, "pt") as f:
            found |= dict.fromkeys(f.keys(), path)
    return found
