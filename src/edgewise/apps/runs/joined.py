"""The model of a run whose model is split: the run's vector, which is the device's part, joined with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.core.errors import StoreError
from edgewise.core.vector import Spec, Vector
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.split_part import PART, REST, split_part

REST_START = "rest_start"  # name under which a store keeps the rest before round 0


def model_vector(store: RunStore, recipe: Recipe, facts: Mapping[str, Any], played: int) -> Vector:
    """Return a model's trained parameters: the run's vector, or both parts of a split model.

    Args:
        facts: of the run.
        played: the number of rounds after which it is the model. It must be stored.
    Raises:
        StoreError: E-CHECKPOINT where the rest is not stored.
    """
    params = store.blob(store.models()[played])
    if not recipe.split.used:
        return params
    if recipe.split.local:
        return params  # Both parts travel, in turn.
    parts = split_part(recipe, Spec.of([(name, tuple(shape), dtype) for name, shape, dtype in facts["whole_spec"]]))
    assert parts is not None
    start = store.kept(REST_START)
    rest = store.memory(played).child(REST).get(PART) if played else None if start is None else start[0]
    if rest is None:
        what = f"{store.out} has the device's part after {played} rounds, and not the rest of that model."
        raise StoreError("E-CHECKPOINT", what, "take the newest model.")
    return parts.join(params, rest)
