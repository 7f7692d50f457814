"""Numbers of plans and blobs that follow from facts, for ``tests/protocol/vectors/plans.json``.

The inputs are a recipe's own tables (defaults are left out), the layout of what is trained, the population, and the
noise that facts state. The outputs are what ``docs/plan.md`` derives from them.
"""

from __future__ import annotations

import tomllib
from typing import Any

import msgspec
import numpy as np

from edgewise.apps.cli import shipped
from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.space import Space
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import StatedNoise
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.secagg.params import Params

TENSORS = [("layers.0.a", [300, 40], "float32"), ("layers.1.a", [200, 90], "float32"), ("layers.1.b", [70], "float32")]
SPEC = Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in TENSORS])
NOISE = {"multiplier": 1.25, "epsilon": 8.0}
NO_PART = ("simulation", "compare", "report", "eval", "personal", "distill", "retriever")  # of what follows
POPULATIONS = {
    "adapters": 24,
    "async": 24,
    "code": 24,
    "drift": 12,
    "fedsa": 24,
    "edge-llm": 480,
    "industrial": 9,
    "industrial-layers": 3,
    "last-blocks": 24,
    "layerwise": 24,
    "personal": 24,
    "plays": 24,
    "private": 1000,
    "pruned": 24,
    "quantized": 24,
    "redistill": 24,
    "retrieve": 24,
    "smart-home": 52,
    "split": 24,
    "split-once": 24,
    "tiny-link": 24,
    "two-server": 1000,
}
LAYERS = {"trainable": {"kind": "layers", "layers": ["layers.*"]}}
GRID = [{"kind": "clip", "l2": 2.0}, {"kind": "rotate"}, {"kind": "clamp", "linf": 0.05}]


def _visible(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"privacy": "none", "stage": [{"kind": "weigh"}, *stages]}


def _hidden(*stages: dict[str, Any]) -> dict[str, Any]:
    return {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": list(stages)}


def _inside(*stages: dict[str, Any]) -> dict[str, Any]:
    return _visible({"kind": "feedback"}, *stages)


CODECS: dict[str, dict[str, Any]] = {
    "float32": _visible(),
    "blocks of 8 bits": _visible({"kind": "quantize", "bits": 8}),
    "blocks of 1 bit": _visible({"kind": "quantize", "bits": 1, "block": 256}),
    "signs": _inside({"kind": "quantize", "grid": "sign"}),
    "pairs": _inside({"kind": "quantize", "grid": "pair", "block": 256}),
    "nf4": _inside({"kind": "quantize", "grid": "nf4"}),
    "eden, 2 bits": _visible({"kind": "rotate"}, {"kind": "quantize", "grid": "eden", "bits": 2}),
    "mixed, 3 bits": _visible({"kind": "mixed", "bits": 3.0}),
    "top 1 %": _inside({"kind": "top_k", "fraction": 0.01}),
    "top 20 %": _inside({"kind": "top_k", "fraction": 0.2}),
    "random 10 %": _visible({"kind": "random_k", "fraction": 0.1}),
    "shared top 5 %": _inside({"kind": "shared_top_k", "fraction": 0.05}),
    "factors of rank 2": _inside({"kind": "low_rank", "rank": 2}),
    "a sketch, 10 times smaller": _visible({"kind": "sketch", "ratio": 10.0}),
    "one layer": _visible({"kind": "segments", "names": ["layers.1.*"]}),
    "layers in turn": _visible({"kind": "segments", "cycle": 2}),
    "masked, 8 bits": _hidden(*GRID, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}),
    "masked, 1 bit": _hidden(*GRID, {"kind": "quantize", "bits": 1, "grid": "shared"}, {"kind": "wrap"}),
    "masked, a ring that is given": _hidden(
        *GRID, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap", "bits": 16}),
    "masked, 25 % of 4 bits": _hidden(
        {"kind": "random_k", "fraction": 0.25, "most": 2.0}, *GRID, {"kind": "quantize", "bits": 4, "grid": "shared"},
        {"kind": "wrap"}),
    "masked, with metrics and weights": {**_hidden(
        {"kind": "weigh"}, *GRID, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}),
        "metrics": "sum"},
    "grouped": {**_hidden(*GRID, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}),
                "merge": {"kind": "grouped", "groups": 3}, "trust": {"malicious_fraction": 0.01}},
    "masked rungs": {"privacy": "hidden", "codec": "adaptive", "merge": {"kind": "secure_sum"},
                     "stage": [{"kind": "clip", "l2": 2.0}]},
    "a curious server": {**_hidden(*GRID, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}),
                         "trust": {"server": "curious"}},
    "noise of the server": {"privacy": "central_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 0.5}},
    "noise of the server, and a clip that follows": {
        "privacy": "central_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 0.5, "adaptive_clip": True}},
    "noise of each device": {"privacy": "local_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 0.5}},
    "a noised sum": {"privacy": "distributed_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 0.5},
                     "merge": {"kind": "secure_sum"}},
    "a noised sum in a ring that is given": {
        "privacy": "distributed_dp", "dp": {"noise_multiplier": 1.25, "delta": 1e-5, "clip_l2": 0.5, "bits": 24},
        "merge": {"kind": "secure_sum"}},
}  # fmt: skip
FORGED = (  # of "masked, 8 bits"
    ("fewer devices in the smallest sum", {"n_min": 19}), ("more devices in the smallest sum", {"n_min": 21}),
    ("fewer corrupt devices", {"corrupt": 1}), ("more corrupt devices", {"corrupt": 3}),
    ("a smaller ring", {"ring_bits": [12]}), ("two rings", {"ring_bits": [13, 13]}), ("no ring", {"ring_bits": []}),
    ("another population", {"population": 44}), ("noise that the recipe does not have", {"noise": NOISE}),
)  # fmt: skip
FORGED_NOISE = (  # of "a noised sum"
    ("no noise", None), ("another epsilon", {"multiplier": 1.25, "epsilon": 9.0}),
    ("too little noise", {"multiplier": 0.4, "epsilon": 8.0}), ("noise of 0", {"multiplier": 0.0, "epsilon": 8.0}),
)  # fmt: skip
FLOORS = (  # what an owner asks for, of which plan, and whether the plan keeps it
    ("masked, 8 bits", {"hidden": True}, True), ("float32", {"hidden": True}, False),
    ("masked, 8 bits", {"n_min": 20}, True), ("masked, 8 bits", {"n_min": 21}, False),
    ("masked, 8 bits", {"corrupt": 0.1}, True), ("masked, 8 bits", {"corrupt": 0.3}, False),
    ("masked, 8 bits", {"server": "malicious"}, True), ("a curious server", {"server": "malicious"}, False),
    ("masked, 8 bits", {"local_steps": 10}, True), ("masked, 8 bits", {"local_steps": 9}, False),
    ("masked, 8 bits", {"clip_l2": 2.5}, True), ("masked, 8 bits", {"clip_l2": 1.9}, False),
    ("masked, 8 bits", {"cohort": 20}, True), ("masked, 8 bits", {"cohort": 21}, False),
    ("masked, 8 bits", {"epsilon": 8.0}, False), ("masked, 8 bits", {"upload_bytes": 40_000.0}, False),
    ("masked, 8 bits", {"words": ["distributed_dp"]}, False), ("masked, 8 bits", {"device_unit": True}, False),
    ("a noised sum", {"device_unit": True}, True), ("a noised sum", {"noise_multiplier": 1.3}, False),
    ("a noised sum", {"delta": 1e-6, "epsilon": 100.0}, False),
)  # fmt: skip


def inputs() -> dict[str, dict[str, Any]]:
    """Plan -> its recipe's tables, population and stated noise."""
    found = {}
    for name in shipped.shipped_recipe_names():
        tables = {k: v for k, v in tomllib.loads(shipped.text(name)).items() if k not in NO_PART}
        if "layers" in tables.get("trainable", {}):
            tables |= LAYERS  # of this file's layout
        if tables.get("split", {}).get("loss") == "local":
            tables["split"]["cut"] = 1
        found[name] = {"recipe": tables, "population": POPULATIONS[name]}
    for name, tables in CODECS.items():
        found[name] = {"recipe": tables, "population": 1000 if "noised" in name else 40}
    for one in found.values():
        one["noise"] = NOISE if "dp" in one["recipe"] else None
    return found


def compiled(one: dict[str, Any]) -> Plan:
    """The plan of an input."""
    noise = None if one["noise"] is None else StatedNoise(**one["noise"])
    return compile(from_plain(one["recipe"]), SPEC, one["population"], BUILT_IN, noise)


def numbers(plan: Plan) -> dict[str, Any]:
    """Numbers that ``docs/plan.md`` derives."""
    sampling, policy = plan.sampling, plan.policy
    return {
        "ring_bits": list(plan.facts.ring_bits), "n_min": plan.facts.n_min, "corrupt": plan.facts.corrupt,
        "cohort": {"invite": sampling.invite, "goal": sampling.goal, "minimum": sampling.minimum,
                   "groups": sampling.groups},
        "trust": None if policy is None else {"corrupt": policy.corrupt, "dropout": policy.dropout,
                                              "server": policy.server},
        "sessions": [_session(params) for params in plan.sessions],
        "ways": [_way(pipe.encoded) for pipe in plan.rung_pipelines or plan.pipelines],
        "clip": None if (clips := plan.clips(0)) is None else list(clips),
        "rules": [msgspec.to_builtins(plan.rule(r)) for r in (0, plan.rounds - 1)], "rounds": plan.rounds,
        "frame_limit": plan.frame_limit_bytes, "model_bytes": plan.snapshot_bytes,
    }  # fmt: skip


def _session(params: Params) -> dict[str, Any]:
    return {"n_min": params.n_min, "bits": params.bits, "dim": params.dim, "heads": params.heads, "rung": params.rung}


def _way(space: Space) -> dict[str, Any]:
    grid, noise = space.grid, space.noise
    return {
        "n_max": space.quorum.n_max, "dim": space.dim, "universe": space.universe, "heads": list(space.head),
        "kind": grid.kind.value, "bits": grid.bits, "level_max": grid.level_max, "stride": grid.stride,
        "step": grid.scale, "block": grid.block, "l2": None if space.l2 == np.inf else space.l2,
        "noise": None if not noise.std else {"std": noise.std, "honest": noise.honest},
        "announced": space.announced, "payload_bytes": pack.size_bytes(space),
        "payload_is_exact": space.support is None and space.layout is None,
    }  # fmt: skip


def blobs() -> dict[str, Any]:
    """The bytes of models, deltas and supports."""
    values = [0.5, -1.0, 0.0, 2.0, -0.25]
    delta = frame.Delta(round=3, public=bytes(range(32)), payload=memoryview(b"payload"))
    supports = ([3], [0, 7, 8, 300, 4095], list(range(0, 4096, 2)), list(range(10)), [])
    return {
        "model": {"values": values, "hex": vector.to_bytes(np.array(values, np.float32)).hex()},
        "delta": {"round": 3, "public": delta.public.hex(), "payload": b"payload".hex(),
                  "hex": frame.dump(delta).hex()},
        "supports": [{"universe": 4096, "positions": s, "hex": pack.pack_support(np.array(s, np.int64), 4096).hex(),
                      "golomb": pack.golomb_parameter(len(s), 4096)} for s in supports],
    }  # fmt: skip


def table(made: dict[str, Any]) -> list[str]:
    """The table of ``docs/plan.md``: the first way of each plan."""
    rows = [
        "| plan | devices of a sum | coordinates | scalars | form | bits | largest level | step | payload |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    for name, one in made.items():
        way, devices = one["plan"]["ways"][0], f"{one['plan']['n_min']} to {one['plan']['ways'][0]['n_max']}"
        exact = "" if way["payload_is_exact"] else "about "
        grid = [f"{way['bits']:g}", way["level_max"], f"{way['step']:.6g}" if way["step"] else "travels"]
        if way["kind"] == "real":
            grid = ["32", "-", "-"]
        cells = [name, devices, way["dim"], len(way["heads"]), way["kind"], *grid, f"{exact}{way['payload_bytes']:.0f}"]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def plans() -> dict[str, Any]:
    """The contents of ``plans.json``."""
    made = {name: {**one, "plan": numbers(compiled(one))} for name, one in inputs().items()}
    forged = [{"name": n, "plan": "masked, 8 bits", "facts": f, "code": "E-FACTS"} for n, f in FORGED]
    forged += [{"name": n, "plan": "a noised sum", "facts": {"noise": f}, "code": "E-FACTS"} for n, f in FORGED_NOISE]
    floors = [{"plan": name, "floor": asked, "code": "" if kept else "E-FLOOR"} for name, asked, kept in FLOORS]
    return {"layout": TENSORS, "plans": made, "forged": forged, "floors": floors, "blobs": blobs()}
