"""Results of `edgewise check` on a recipe, without model and text."""

from __future__ import annotations

from typing import Any

from edgewise.core.vector import Spec
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.recipe import Recipe

SPEC = Spec.of(
    [("model.embed.weight", (30, 8), "float32")]
    + [(f"model.layers.{i}.{w}.weight", (16, 8), "float32") for i in range(3) for w in ("up", "down")]
)


def explained(recipe: Recipe, population: int = 40) -> tuple[Any, ...]:
    """Compile and explain. Raises as ``compile``."""
    plan = compile_plan(recipe, SPEC, population, BUILT_IN)
    return explain.trace(plan), explain.trace_down(plan), explain.cost(plan), plan.rule(0), plan.claims
