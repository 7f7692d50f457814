"""From a recipe's file to a recipe whose parts exist: their kinds and keys are checked before a model is loaded, and a
fault in a ``[[stage]]`` carries file and line as other faults do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.plan.catalogue import AnyPart, Catalogue, look_up
from edgewise.plan.recipe import findings, recipe
from edgewise.plan.recipe.recipe import Recipe

_NAMED = re.compile(r"`(\w+)`")


def load(path: str | Path, overrides: dict[str, Any] | None, catalogue: Catalogue) -> Recipe:
    """``recipe.load``, with each part looked up in the catalogue.

    Raises RecipeError as ``recipe.load`` and ``catalogue.look_up``, with the place of the fault.
    """
    text = recipe.read(path)
    found = recipe.parse(text, str(path), overrides)
    examine(found, catalogue, findings.Origin(str(path), text, tuple(overrides or ())))
    return found


def examine(found: Recipe, catalogue: Catalogue, origin: findings.Origin | None = None) -> None:
    """Look up each part of a recipe. Raises RecipeError as ``catalogue.look_up``, with the place in ``origin``."""
    for place, where, parts, table in _tables(found, catalogue):
        try:
            look_up(parts, where, table)
        except RecipeError as e:
            if origin is None:
                raise
            keys = [(*place, name) for name in (*_NAMED.findall(e.what), "kind")]
            raise RecipeError(e.code, f"{findings.at(origin, place, keys)}: {e.what}", e.fix) from None


def _tables(
    found: Recipe, catalogue: Catalogue
) -> Iterator[tuple[findings.Place, str, Mapping[str, AnyPart], Mapping[str, Any]]]:
    """(place, its name in messages, the parts to choose from, the table) of every part of a recipe."""
    lists = (
        ("stage", catalogue.stages, found.stage),
        ("downlink", catalogue.stages, found.downlink),
        ("post", catalogue.posts, found.post),
    )
    for name, stages, tables in lists:
        for i, table in enumerate(tables):
            yield (name, i), f"[[{name}]] {i + 1}", stages, table
    yield ("merge",), "[merge]", catalogue.merges, found.merge
    yield ("strategy",), "[strategy]", catalogue.strategies, found.strategy
