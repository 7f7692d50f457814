"""Forecasts of `check` equal what a run measures: bytes up and down, masks, signatures and addresses included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.apps.report import summary
from edgewise.apps.simulate import check, simulation
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.recipe import recipe

GRID = [
    {"kind": "weigh"},
    {"kind": "clip", "l2": 4.0},
    {"kind": "clamp", "linf": 2.0},
    {"kind": "quantize", "bits": 8, "grid": "shared"},
    {"kind": "wrap"},
]
MASKS = {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": GRID}
DP = {"stage": [], "metrics": "none", "dp": {"epsilon": 20.0, "delta": 1e-4, "clip_l2": 1.0}}
FEW: dict[str, Any] = {"malicious_fraction": 0.05}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"stage": [{"kind": "weigh"}]},
    "four bits": {"stage": [{"kind": "weigh"}, {"kind": "quantize", "bits": 4}]},
    "sparse": {"stage": [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.1}, {"kind": "quantize", "bits": 4}]},
    "turns": {"stage": [{"kind": "segments", "cycle": 2}], "round": {"rounds": 4}},
    "cohorts": {"round": {"rounds": 3, "sampling": "fixed", "cohort": 8}},
    "downlink": {"downlink": [{"kind": "quantize", "bits": 4}], "round": {"rounds": 6}},
    "hidden": MASKS,
    "hidden, sparse graph": {**MASKS, "data": {"partition": "iid", "devices": 70}, "trust": FEW},
    "hidden, groups": {
        **MASKS,
        "merge": {"kind": "grouped", "groups": 3, "byzantine": 1},
        "trust": FEW,
        "round": {"rounds": 2, "minimum": 0.8},
    },
    "two servers": {**MASKS, "merge": {"kind": "shared_sum"}, "trust": FEW},
    "distributed_dp": {"privacy": "distributed_dp", **DP, "merge": {"kind": "secure_sum"}, "trust": FEW},
    "central_dp": {"privacy": "central_dp", **DP},
    "local_dp": {"privacy": "local_dp", **DP},
}


@pytest.mark.slow
@pytest.mark.parametrize("dim", [600, 20_000], ids=["a small net", "a larger one"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_as_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dim: int) -> None:
    monkeypatch.setenv("TOY_DIM", str(dim))
    plain = {
        "privacy": "none",
        "data": {"partition": "iid", "devices": 24},
        "round": {"rounds": 2},
        "training": {"local_steps": 1, "lr": 0.1},
        "eval": {"every": 0},
        "compare": {"local_only": False, "centralised": False},
        **KINDS[kind],
    }
    read = recipe.from_plain(json.loads(json.dumps(plain)))
    told = check.examine(read, tmp_path, with_extensions(["toy"]), fast=True)["bytes"]
    out = simulation.run(read, out=tmp_path / "run", recipe_dir=tmp_path, extensions=["toy"], report=False)
    with RunStore(out) as store:
        measured = summary.build(store)["bytes"]
    assert told["up"] == pytest.approx(measured["up_per_device_round"], rel=0.02)
    assert told["up_total"] == pytest.approx(measured["up_total"], rel=0.02)
    assert told["down_total"] == pytest.approx(measured["down_total"], rel=0.02)
