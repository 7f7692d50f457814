"""A round costs the same however many rounds were played before it: calls of functions are counted, not seconds."""

from __future__ import annotations

import statistics
import sys
from itertools import pairwise
from typing import Any

import pytest
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events

ROUNDS = 60
DP: dict[str, Any] = {
    "privacy": "central_dp",
    "stage": [],
    "dp": {"epsilon": 50.0, "delta": 1e-5, "clip_l2": 1.0},
}
RECIPES: dict[str, dict[str, Any]] = {
    "the ledger": {**DP, "round.sampling": "all", "data.devices": 4},
    "what devices hold": {
        "downlink": [{"kind": "top_k", "fraction": 0.005}, {"kind": "quantize", "bits": 4}],
        "round.sampling": "fixed",
        "round.cohort": 10,
        "data.devices": 700,
    },
    "the ledger of cohorts in turn": {**DP, "round.sampling": "cyclic", "round.cohort": 2, "data.devices": 60},
}


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("what", RECIPES)
def test_a_round_costs_the_same_after_many(what: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DIM", "20000")  # deltas of many rounds are worth a snapshot
    n, at = 0, list[int]()

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal n
        n += event in ("call", "c_call")

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.RoundFinished):
            at.append(n)
            sys.setprofile(count)  # from the first round on: compiling the plan is not counted

    plain = {
        "round.rounds": ROUNDS, "compare.local_only": False, "compare.centralised": False, "training.local_steps": 1,
        "eval.devices": 1, "eval.every": 0, **RECIPES[what],
    }  # fmt: skip
    recipe = make_recipe(plain)
    before = sys.getprofile()
    try:
        simulation.run(recipe, out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], sinks=[sink], report=False)
    finally:
        sys.setprofile(before)
    each = [b - a for a, b in pairwise(at)]
    early, late = statistics.median(each[20:30]), statistics.median(each[-10:])  # links are remembered for 16 rounds
    assert late <= 1.05 * early, each
