"""Every recipe that is shipped compiles against the bundled model's own layout."""

from __future__ import annotations

import json
import struct
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path

import pytest

from edgewise.codecs.ladder import rung_bytes
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.own_part import own_part
from edgewise.plan.plan import Plan
from edgewise.plan.recipe import recipe
from edgewise.plan.split_part import split_part
from edgewise.strategies.depths import trained

ASSETS = Path(str(resources.files("edgewise"))) / "assets"
OWNERS = {"python-stdlib": 17, "plays": 24, "keywords": 52}
TRAINERS = {"encoder": 9, "layers": 3}  # devices of a recipe of vibration: nodes, or factories
RECIPES = sorted((ASSETS / "recipes").glob("*.toml"))


def student() -> list[tuple[str, list[int], str]]:
    """Names and shapes of the bundled model, from the header of its file, layers in the order of the model."""
    raw = (ASSETS / "student" / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    return [(n, t["shape"], "float32") for n, t in sorted(header.items()) if n != "__metadata__"]


def spotter(read: recipe.Recipe) -> list[tuple[str, list[int], str]]:
    """Names and shapes of the model of keywords, of six words."""
    from edgewise.learn.keywords.network import KeywordNet

    model = KeywordNet(40, 74, 6, read.keywords)
    return [(name, list(p.shape), "float32") for name, p in model.named_parameters()]


def vibrating(read: recipe.Recipe) -> list[tuple[str, list[int], str]]:
    """Names and shapes of the parts that a recipe of vibration trains, of ten states."""
    from edgewise.learn.vibration.network import VibrationNet
    from edgewise.learn.vibration.trainer import TRAINED

    model, front = VibrationNet(read.vibration, 10), TRAINED[read.vibration.train]
    return [(name, list(p.shape), "float32") for name, p in model.named_parameters() if name.startswith(front)]


LAYOUTS = {"keywords": spotter, "vibration": vibrating}


def planned(path: Path) -> Plan:
    read = recipe.load(path)
    assert read.model.base == "bundled"
    wanted = read.trainable.layers or ["*"]
    own = LAYOUTS.get(read.data.source)
    layout = student() if own is None else own(read)
    spec = Spec.of([s for s in layout if any(fnmatchcase(s[0], p) for p in wanted)])
    if (parts := split_part(read, spec)) is not None:
        spec = parts.shared
    if read.split.local:
        spec = Spec.of(
            [*spec.to_list(), ("local_head.gain", (128,), "float32"), ("local_head.map", (128, 128), "float32")]
        )
    if blocks := read.trainable.last_blocks:
        names = trained(spec, blocks)
        spec = Spec.of([(s.name, s.shape, s.dtype) for s in spec.segments if s.name in names])
    owners = {**OWNERS, "vibration": TRAINERS.get(read.vibration.train)}[read.data.source]
    return compile(read, spec, read.data.devices or owners, BUILT_IN)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_compiles(path: Path) -> None:
    plan = planned(path)
    assert plan.recipe.name == path.stem
    sizes = rung_bytes(plan.at(0).encoded) or (plan.upload_bytes(0),)  # a rung may be float32, for fast links
    assert min(sizes) < 4 * plan.spec.dim


def test_the_recipes_of_a_split_model_move_the_part_of_the_devices_and_then_the_rest() -> None:
    named = {s.name for s in planned(ASSETS / "recipes" / "split.toml").spec.segments}
    assert {name for name in named if "layers" not in name} == {"model.embed_tokens.weight", "model.norm.weight"}
    assert {name.split(".")[2] for name in named if "layers" in name} == {"0", "1"}
    plan = planned(ASSETS / "recipes" / "split-once.toml")
    assert [plan.phase(r) for r in range(plan.rounds)] == [0] * 6 + [1] * 10
    blocks = [{s.name.split(".")[2] for s in group if "layers" in s.name} for group in plan.groups]
    assert blocks == [{"0", "1"}, {"2", "3"}]
    assert plan.turns.first(1) == 6


def test_the_layer_wise_recipe_moves_whole_layers_by_halves() -> None:
    plan = planned(ASSETS / "recipes" / "layerwise.toml")
    moved = [{".".join(s.name.split(".")[:3]) for s in group} for group in plan.groups]
    assert moved == [{"model.layers.0", "model.layers.1"}, {"model.layers.2", "model.layers.3"}]
    assert plan.rounds % len(plan.pipelines) == 0


def test_the_recipe_of_shared_factors_sends_a_and_keeps_b() -> None:
    read = recipe.load(ASSETS / "recipes" / "fedsa.toml")
    names = [
        f"model.layers.0.mlp.{which}.lora_{factor}.weight" for which in ("up_proj", "down_proj") for factor in "AB"
    ]
    parts = own_part(read, Spec.of([(name, (8, 4), "float32") for name in names]))
    assert parts is not None
    assert [s.name.split(".")[-2] for s in parts.own.segments] == ["lora_B", "lora_B"]
    assert [s.name.split(".")[-2] for s in parts.shared.segments] == ["lora_A", "lora_A"]
