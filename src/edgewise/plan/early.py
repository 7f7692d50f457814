"""Refusals across sections that need no model: the same as those of ``plan.compile``, found before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.stage import Merge
from edgewise.plan.catalogue import AnyPart, Catalogue, judge
from edgewise.plan.client_rules import check_recipe
from edgewise.plan.mechanisms.known import promised
from edgewise.plan.metrics import metrics_of
from edgewise.plan.recipe.findings import Finding
from edgewise.plan.recipe.places import Place
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.rules import UnknownValue
from edgewise.plan.sums import check_word
from edgewise.plan.trust import check_read
from edgewise.strategies.base import Strategy

Check = Callable[[], object]


def refusals(recipe: Recipe, catalogue: Catalogue) -> Iterator[Finding]:
    """Everything that the parts of a recipe, its word of privacy, its training and its metrics refuse together.

    Args:
        recipe: it may hold ``UNKNOWN`` values. A check that reads one makes no statement.
    """
    merge = _part(catalogue.merges, "[merge]", lambda: recipe.merge)
    strategy = _part(catalogue.strategies, "[strategy]", lambda: recipe.strategy)
    checks: list[tuple[tuple[Place, ...], Check]] = []
    if isinstance(merge, Merge):
        checks += [
            ((("merge", "kind"), ("privacy",)), lambda: check_word(recipe, merge)),
            ((("trust",), ("merge", "kind")), lambda: check_read(recipe, merge)),
        ]
    if isinstance(merge, Merge) and isinstance(strategy, Strategy):

        def promise() -> Any:
            return promised(recipe.privacy, recipe.dp, hidden=merge.hides is not None)

        client = strategy.client
        checks += [
            ((("strategy", "kind"), ("training", "optimizer")), lambda: check_recipe(recipe, promise(), client)),
            ((("metrics",), ("metric", 0)), lambda: metrics_of(recipe, promise(), client, recipe.round.sampling)),
        ]
    for places, check in checks:
        try:
            check()
        except UnknownValue:
            continue
        except RecipeError as e:
            yield Finding(e.code, e.what, e.fix, places)


def _part(parts: Mapping[str, AnyPart], where: str, table: Callable[[], Mapping[str, Any]]) -> Any:
    """The part that a table names; None where it is wrong, or where its part is made for the layout of a model."""
    try:
        found = judge(parts, where, table())
        if found.part is None or found.faults or set(found.part.given) - {"population"}:
            return None
        return found.part(**found.keys, **dict.fromkeys(found.part.given, 2))
    except (RecipeError, UnknownValue):
        return None
