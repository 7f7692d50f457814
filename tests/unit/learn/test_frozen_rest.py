"""The rest of a split model on a server: it holds the values that a run began with, and gives gradients alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_model

from edgewise.core.errors import ModelError
from edgewise.core.vector import Vector
from edgewise.learn.frozen_rest import FrozenRest
from edgewise.learn.models.untrained import load_untrained
from edgewise.plan.recipe.recipe import Recipe, from_plain

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    tiny_model.save(tmp_path / "tiny")
    return from_plain(
        {
            "privacy": "none",
            "model": {"base": "tiny", "precision": "float32"},
            "data": {"source": "text", "path": "notes", "sequence_len": 32},
            "training": {"batch": 2},
            "split": {"cut": 1, "server_parts": "frozen"},
        }
    )


def rest(recipe: Recipe, place: Path, values: Vector) -> FrozenRest:
    return FrozenRest(recipe, place, place / "cache", values)


def test_the_rest_has_the_values_of_the_run_and_no_gradients(recipe: Recipe, tmp_path: Path) -> None:
    begun = load_untrained(recipe, tmp_path)
    assert begun.rest is not None
    held = rest(recipe, tmp_path, begun.rest + np.float32(1.0))
    assert held.parts.shared == begun.spec
    assert (held.parts.split(held._flat.read())[1] == begun.rest + np.float32(1.0)).all()
    assert not any(p.requires_grad for p in held._model.parameters())
    assert held.part(bytes(32)) is not held.part(bytes(32)), "each session has its own"


def test_values_of_another_model_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        rest(recipe, tmp_path, np.zeros(3, np.float32))
    assert caught.value.code == "E-LAYOUT"
