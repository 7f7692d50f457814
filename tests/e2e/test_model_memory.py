"""Memory of a run by coordinate of its model: allocated bytes are counted at the worst moment of all."""

from __future__ import annotations

from typing import Any

import pytest
from cost import allocated, traced
from fresh import DIM
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation

VECTOR = 4  # bytes a coordinate
QUIET = {"eval.every": 0, "eval.devices": 1, "compare.local_only": False, "compare.centralised": False}
FLOAT32 = {"stage": [{"kind": "weigh", "cap": 16}], "strategy": {"kind": "fedavg"}}


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "vectors"),
    [
        (FLOAT32, 5),  # the exact sum (2), the model, and two of: update, weighed update, packed payload, frame
        ({}, 9.5),  # error feedback, top-k, 4 bits, FedAdam: its two averages and the residual on top
    ],
    ids=["plain", "feedback"],
)
def test_a_run_needs_few_vectors_of_the_length_of_the_model(
    overrides: dict[str, Any], vectors: float, tmp_path: Any
) -> None:
    recipe = make_recipe({**QUIET, "round.rounds": 3, **overrides})

    def play(name: str) -> None:
        simulation.run(recipe, out=tmp_path / name, recipe_dir=tmp_path, extensions=["fresh"], report=False)

    play("warm")  # what is imported and compiled now is not counted
    with traced():
        peak = allocated(lambda: play("counted"))
    assert peak < (vectors + 0.8) * VECTOR * DIM
