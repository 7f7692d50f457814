"""Weights in a file for each block: the same model, and the files of a device's part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from edgewise.core.errors import ModelError
from edgewise.learn.models.cut import Shape
from edgewise.learn.models.hub import INDEX
from edgewise.learn.models.part import load_part
from edgewise.learn.models.shards import part_files, write_shards
from edgewise.learn.models.weights import read_weights

pytestmark = pytest.mark.slow


def sharded(kind: str, place: Path) -> tuple[Path, Path]:
    """A model, and the same in a file for each block."""
    whole, parts = tiny_models.save(kind, place / "whole"), place / "parts"
    parts.mkdir()
    (parts / "config.json").write_bytes((whole / "config.json").read_bytes())
    write_shards(whole, parts)
    return whole, parts


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_files_are_the_model_and_the_same_bytes_again(kind: str, tmp_path: Path) -> None:
    whole, parts = sharded(kind, tmp_path)
    one, other = (read_weights(folder, dtype=torch.float32).state_dict() for folder in (whole, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    (tmp_path / "again").mkdir()
    again = write_shards(parts, tmp_path / "again")
    assert {p.name: p.read_bytes() for p in again} == {p.name: (parts / p.name).read_bytes() for p in again}


@pytest.mark.parametrize(("kind", "shape"), [("llama", "U"), ("llama", "head"), ("qwen2-tied", "U"), ("gpt2", "U")])
def test_a_part_is_read_where_only_its_files_are(kind: str, shape: Shape, tmp_path: Path) -> None:
    _, parts = sharded(kind, tmp_path)
    wanted = part_files(parts, 1, shape)
    assert wanted is not None
    tensors = dict[str, torch.Tensor]()
    for path in parts.glob("*.safetensors"):
        if path.name in wanted:
            tensors |= load_file(path)
        else:
            path.unlink()
    part = load_part(parts, 1, shape, "device")
    assert len(tensors) == len(part.named), "no tensor of the rest"


def test_what_cannot_be_read_in_parts_is_refused(tmp_path: Path) -> None:
    whole, parts = sharded("llama", tmp_path)
    assert part_files(whole, 1, "U") is None, "one file has them all"
    index = json.loads((parts / INDEX).read_bytes())
    del index["weight_map"]["model.norm.weight"]
    (parts / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        part_files(parts, 1, "U")
    (whole / "masks.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="masked or factored") as refused:
        write_shards(whole, tmp_path)
    assert refused.value.code == "E-MODEL"
