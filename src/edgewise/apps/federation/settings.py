"""A recipe as keyword arguments.

    edgewise.Recipe(privacy="distributed_dp", rounds=20, epsilon=8.0)

``Federation``, ``simulate`` and ``sweep`` take it in place of a recipe's file.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe import findings, toml
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.findings import Finding
from edgewise.plan.recipe.first_run import completion
from edgewise.plan.recipe.places import Origin
from edgewise.plan.recipe.rules import Section

# Sections whose keys stand by themselves only if no section before them has the key: lr is training.lr.
AFTER = ("personal", "split", "distill", "prune", "retriever", "keywords", "vibration")
COLUMNS = {"prompt", "text", "messages", "as_chat", "tools", "answers", "time"}  # keys of [data] about rows of a table
_ORDER = {section: place for place, section in enumerate(AFTER, 1)}


class Recipe:
    """The settings of a run, by the keys of a recipe file.

        Recipe(privacy="none", rounds=20, lr=1e-3)                         sets round.rounds and training.lr
        Recipe(privacy="none", data={"holdout": 0.2}, strategy={"kind": "fedadam"})
        Recipe(privacy="distributed_dp", rounds=20, epsilon=8.0)           a Federation chooses delta, clip and training

    A key that only one section has may stand by itself. A section or a part is a table. A ``Federation`` fills in what
    it is given as objects (model, data, stages). With ``data`` it also knows the number of devices, and chooses what a
    recipe with an epsilon lacks (``plan.recipe.first_run``). Elsewhere such a recipe needs ``delta`` and ``clip_l2``.

    Attributes:
        tables: as in the file, without defaults.
    Raises:
        RecipeError: E-KEY with the nearest key, E-TYPE, E-VALUE, E-MISSING, E-COMBO, as `edgewise check`.
    """

    def __init__(self, **settings: Any) -> None:
        self.tables: dict[str, Any] = {}
        unplaced: list[Finding] = []
        for name, value in settings.items():
            place, wrong = _key_of_name(name)
            unplaced += [wrong] if wrong is not None else []
            if place:  # where a name is wrong too, so that the rest is judged as it was meant
                findings.put(self.tables, place, copy.deepcopy(value) if isinstance(value, dict) else value)
        chosen_later = {key: value for key, value in completion(self.tables, 2).items() if key.startswith("dp.")}
        recipes.build(put(self.tables, {**chosen_later, **_rows_given_later(self.tables)}), Origin(), unplaced)

    def but(self, settings: Mapping[str, Any]) -> Recipe:
        """Copy the recipe with other settings, by dotted key: ``recipe.but({"training.lr": 0.01})``.

        Raises as ``Recipe``.
        """
        return from_tables(put(self.tables, settings))

    def __repr__(self) -> str:
        from edgewise.apps.report.comparison import flat

        return f"Recipe({', '.join(f'{key}={value!r}' for key, value in flat(self.tables).items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.tables == other.tables

    __hash__ = None  # type: ignore[assignment]  # tables may change


def from_tables(tables: Mapping[str, Any]) -> Recipe:
    """Make settings from the tables of a recipe. Raises as ``Recipe``."""
    return Recipe(**tables)


def tables_of(given: str | Path | Mapping[str, Any] | Recipe | recipes.Recipe) -> dict[str, Any]:
    """Return the tables of a recipe in any form: a file, tables, settings, or a resolved recipe.

    Raises:
        RecipeError: E-RECIPE-READ, E-RECIPE-SYNTAX for a file. E-TYPE for another type.
    """
    if isinstance(given, str | Path):
        return toml.read(recipes.read(given), str(given))
    if isinstance(given, Recipe):
        return copy.deepcopy(given.tables)
    if isinstance(given, recipes.Recipe):
        return given.resolved()
    if isinstance(given, Mapping):
        return copy.deepcopy(dict(given))
    fix = "give the path of a TOML file, tables, or edgewise.Recipe(privacy=..., rounds=...)."
    raise RecipeError("E-TYPE", f"recipe is a {type(given).__name__}.", fix)


def put(tables: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy tables with some values replaced, by dotted key. Raises RecipeError(E-KEY)."""
    out = copy.deepcopy(dict(tables))
    for dotted, value in settings.items():
        findings.put(out, dotted, value)
    return out


def _rows_given_later(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys of [data] that stand for the rows that a ``Federation`` is given, where a column of them is named."""
    data = tables.get("data")
    if not isinstance(data, dict) or "source" in data or not COLUMNS & data.keys():
        return {}
    return {"data.source": "jsonl", "data.path": "rows.jsonl", "data.owner": "owner", "data.partition": "owner"}


def _key_of_name(name: str) -> tuple[str, Finding | None]:
    """Return the dotted key that a name by itself stands for, and the fault of the name if it has one."""
    if name in recipes.Recipe.model_fields or name == "schema":
        return name, None
    places = _places_of_keys().get(name, [])
    if len(places) == 1:
        return places[0], None
    if places:
        tables = [place.partition(".")[0] for place in places]
        fix = f"write one of {', '.join(f'{table}={{{name!r}: ...}}' for table in tables)}."
        return "", Finding("E-KEY", f"`{name}` is a key of {len(places)} sections.", fix)
    meant, fix = findings.key_hint(name, recipes.Recipe)
    return meant[0] if len(meant) == 1 and "." in meant[0] else "", Finding("E-KEY", f"unknown key `{name}`.", fix)


@cache
def _recipe_sections() -> dict[str, type[Section]]:
    """Map the names of the recipe's sections to their classes."""
    fields = recipes.Recipe.model_fields.items()
    return {
        name: f.annotation for name, f in fields if isinstance(f.annotation, type) and issubclass(f.annotation, Section)
    }


@cache
def _places_of_keys() -> dict[str, list[str]]:
    """Map each key to its dotted places."""
    found: dict[str, list[str]] = defaultdict(list)
    for section, kind in sorted(_recipe_sections().items(), key=lambda pair: _ORDER.get(pair[0], 0)):
        for key in kind.model_fields:
            if section not in AFTER or key not in found:
                found[key].append(f"{section}.{key}")
    return dict(found)
