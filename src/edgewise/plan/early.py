"""Refusals across sections that need no model: the same as those of ``plan.compile``, found before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge, Stage
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN, AnyPart, Catalogue, Judged, judge
from edgewise.plan.client_rules import check_recipe
from edgewise.plan.mechanisms.known import recipe_promise
from edgewise.plan.metrics import recipe_metrics
from edgewise.plan.recipe.findings import Finding
from edgewise.plan.recipe.places import Place
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.rules import UnknownValue
from edgewise.plan.stages import build_stages
from edgewise.plan.sums import check_privacy_word
from edgewise.plan.trust import check_trust_keys
from edgewise.strategies.base import Strategy

Check = Callable[[], object]
MODEL = Spec.of([("any", (1 << 20,), "float32")])  # Stands for a model where only the order of stages matters.
MODEL_FREE = frozenset(
    "E-TOPK-SECAGG E-NOT-SUMMABLE E-NOT-REAL E-NOT-INTEGER E-SPARSE-TWICE E-NO-BOUND E-ROBUST-SECAGG E-ORDER".split()
)


def recipe_refusals(recipe: Recipe, catalogue: Catalogue) -> Iterator[Finding]:
    """Find everything that the parts of a recipe, its word of privacy, its training and its metrics rule out together.

    Args:
        recipe: it may hold ``UNKNOWN`` values. A check that reads one makes no statement.
    """
    merge = _part_of_table(catalogue.merges, "[merge]", lambda: recipe.merge)
    strategy = _part_of_table(catalogue.strategies, "[strategy]", lambda: recipe.strategy)
    checks: list[tuple[tuple[Place, ...], Check]] = []
    if isinstance(merge, Merge):
        checks += [
            ((("merge", "kind"), ("privacy",)), lambda: check_privacy_word(recipe, merge)),
            ((("trust",), ("merge", "kind")), lambda: check_trust_keys(recipe, merge)),
        ]
    if isinstance(merge, Merge) and isinstance(strategy, Strategy):

        def promise() -> Any:
            return recipe_promise(recipe.privacy, recipe.dp, hidden=merge.hides is not None)

        client = strategy.client
        checks += [
            ((("strategy", "kind"), ("training", "optimizer")), lambda: check_recipe(recipe, promise(), client)),
            ((("metrics",), ("metric", 0)), lambda: recipe_metrics(recipe, promise(), client, recipe.round.sampling)),
        ]
    for places, check in checks:
        try:
            check()
        except UnknownValue:
            continue
        except RecipeError as e:
            yield Finding(e.code, e.what, e.fix, places)
    if isinstance(merge, Merge):
        with suppress(UnknownValue):
            yield from _misplaced_stages(recipe, catalogue, merge)


def _misplaced_stages(recipe: Recipe, catalogue: Catalogue, merge: Merge) -> Iterator[Finding]:
    """Find stages that cannot stand where they stand, whatever the model is.

    Only a recipe without noise of its own is judged, and only one whose stages do not ask for the layout of a model.
    """
    if (merge.hides is None) != (recipe.privacy == "none"):
        return  # The word and the merge disagree, so no order of stages can be right.
    tables = recipe.stage
    if recipe.privacy not in ("none", "hidden") or recipe.codec != "stages" or _in_front(recipe):
        return
    if not isinstance(tables, list):
        return
    each = [judge(catalogue.stages, "[[stage]]", table) for table in tables]
    if any(not _is_built_in(one) or set(one.part.given if one.part else ()) - {"inner"} for one in each):
        return
    space, i = Space(MODEL.dim, Quorum(2, 2)), 0
    stages: list[Stage] = []
    try:
        for i, _ in enumerate(each):
            made = build_stages(
                tables[i:] if not _is_without_inner(each[i]) else tables[i : i + 1], MODEL, catalogue.stages
            )
            space = made[0].infer(space)
            stages += made
            if not _is_without_inner(each[i]):
                break  # it has taken the stages after it
        pipeline(Space(MODEL.dim, Quorum(2, 2)), stages, merge)
    except RecipeError as e:
        if e.code in MODEL_FREE:
            last = i if len(stages) < len(each) else len(each) - 1
            yield Finding(e.code, e.what, e.fix, (("stage", last, "kind"), ("merge", "kind"), ("privacy",)))


def _in_front(recipe: Recipe) -> bool:
    """Tell whether the rule of adapters puts a stage in front, which asks for the layout of a model."""
    return bool(recipe.trainable.turns) or recipe.trainable.moves_base


def _is_built_in(found: Judged) -> bool:
    """Tell whether a table is right and its part built in. Nobody's own code runs before its run."""
    kinds = (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.strategies)
    return not found.faults and any(found.part is one for parts in kinds for one in parts.values())


def _is_without_inner(judged: Judged) -> bool:
    """Tell whether a part is right and wraps no other."""
    return judged.part is not None and "inner" not in judged.part.given


def _part_of_table(parts: Mapping[str, AnyPart], where: str, table: Callable[[], Mapping[str, Any]]) -> Any:
    """Make the part that a table names. None if the table is wrong, or if the part asks for the layout of a model."""
    try:
        found = judge(parts, where, table())
        if found.part is None or not _is_built_in(found) or set(found.part.given) - {"population"}:
            return None
        return found.part(**found.keys, **dict.fromkeys(found.part.given, 2))
    except (RecipeError, UnknownValue):
        return None
