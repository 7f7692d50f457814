"""Read a recipe and look up its parts, before a model is loaded. One error names every fault with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.plan import early
from edgewise.plan.catalogue import AnyPart, Catalogue, judge
from edgewise.plan.recipe import recipe
from edgewise.plan.recipe.findings import Examined, Finding
from edgewise.plan.recipe.places import Origin, Place
from edgewise.plan.recipe.recipe import Recipe


def load(path: str | Path, overrides: Mapping[str, Any] | None, catalogue: Catalogue) -> Recipe:
    """Read a recipe from its file.

    Args:
        overrides: ``{"training.lr": 0.01}``, put over the file's values.
    Raises:
        RecipeError: as ``recipe.load`` and ``catalogue.look_up``. It lists every fault (``RecipeError.faults``).
    """
    text = recipe.read(path)
    plain, found = recipe.tables(text, str(path), overrides or {})
    return build_checked_recipe(plain, catalogue, Origin(str(path), text, tuple(overrides or ())), found)


def build_checked_recipe(
    plain: dict[str, Any], catalogue: Catalogue, origin: Origin, found: Sequence[Finding] = ()
) -> Recipe:
    """Make a recipe of plain tables.

    Args:
        origin: of the tables, for messages. found: faults that are known already.
    Raises:
        RecipeError: as ``load``.
    """

    def further(result: Examined[Recipe]) -> Iterator[Finding]:
        faults = list(_part_faults(result.tables, catalogue))
        yield from faults
        judged = result.value or result.judged
        if judged is not None:
            yield from early.recipe_refusals(judged, catalogue)

    return recipe.build(plain, origin, found, further)


def _part_faults(tables: Mapping[str, Any], catalogue: Catalogue) -> Iterator[Finding]:
    """Yield the faults of the parts of a recipe."""
    for place, where, parts, table in _part_tables(tables, catalogue):
        for one in judge(parts, where, table, _tables_of_other_parts(catalogue, parts)).faults:
            yield one._replace(places=tuple((*place, *key) for key in (*one.places, ("kind",))))


def _tables_of_other_parts(catalogue: Catalogue, parts: Mapping[str, AnyPart]) -> dict[str, str]:
    """Map the parts of the other kinds to the tables that they belong to."""
    kinds = (
        ("[[stage]]", catalogue.stages),
        ("[[post]]", catalogue.posts),
        ("[merge]", catalogue.merges),
        ("[strategy]", catalogue.strategies),
    )
    return {name: where for where, others in kinds if others is not parts for name in others}


def _part_tables(
    tables: Mapping[str, Any], catalogue: Catalogue
) -> Iterator[tuple[Place, str, Mapping[str, AnyPart], Mapping[str, Any]]]:
    """Yield (place, its name in messages, the parts to choose from, the table) for every part of a recipe."""
    lists = (("stage", catalogue.stages), ("downlink", catalogue.stages), ("post", catalogue.posts))
    for name, stages in lists:
        given = tables.get(name)
        for i, table in enumerate(given if isinstance(given, list | tuple) else ()):
            if isinstance(table, Mapping):
                yield (name, i), f"[[{name}]] {i + 1}", stages, table
    for name, parts in (("merge", catalogue.merges), ("strategy", catalogue.strategies)):
        if isinstance(table := tables.get(name), Mapping):
            yield (name,), f"[{name}]", parts, table
