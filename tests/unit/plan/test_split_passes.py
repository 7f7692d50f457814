"""The most times that a run trains on one token, which the promise on a token's vectors counts."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.frame import LocalRule
from edgewise.learn.shards import row_order
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.split_part import most_token_passes


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("length", [{"local_steps": 5}, {"local_epochs": 2.5}, {"local_epochs": 1.0}])
def test_no_device_trains_more_often_on_a_token(batch: int, length: dict[str, float]) -> None:
    recipe = from_plain({"privacy": "none", "round": {"rounds": 3}, "training": {"batch": batch, **length}})
    epochs, steps = length.get("local_epochs", 0.0), int(length.get("local_steps", 1000))
    found = []
    for blocks in range(1, 12):
        rule = LocalRule(steps=steps, lr=0.1, epochs=epochs).counted(blocks, batch)
        drawn = np.concatenate(list(row_order(blocks, rule.steps, batch, bytes(32))))
        found.append(int(np.bincount(drawn).max()))
    assert 3 * max(found) <= most_token_passes(recipe) <= 3 * (max(found) + (epochs > 0))
