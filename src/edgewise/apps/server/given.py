"""Parts of a recipe as a script on the server gives them: as tables, or as parts of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.part import Part
from edgewise.plan.catalogue import BUILT_IN, AnyPart


def table(given: Any, where: str) -> dict[str, Any]:
    """A part's table: of a table, of a name, of a part, or of a part with keys.

        {"kind": "top_k", "fraction": 0.1}   "fedavg"   top_k   functools.partial(top_k, fraction=0.1)

    Raises RecipeError(E-EXTENSION) for what devices do not have, and for anything else.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if isinstance(given, str):
        return {"kind": given}
    keys: Mapping[str, Any] = {}
    if isinstance(given, partial) and not given.args:
        given, keys = given.func, given.keywords
    if not isinstance(given, Part):
        what = f"{where} is a {type(given).__name__}, of which nobody can tell devices the name and the keys."
        fix = f'give a table, {{"kind": "{where}", ...}}, or functools.partial of a part with its keys.'
        raise RecipeError("E-EXTENSION", what, fix)
    if given not in _shipped():
        what = f"{where}: the part {given.name} is your own, and a server sends no code: devices do not have it."
        fix = "use a part that ships with edgewise; simulate your own with edgewise.simulate(..., extensions=[...])."
        raise RecipeError("E-EXTENSION", what, fix)
    return {"kind": given.name, **keys}


def _shipped() -> list[AnyPart]:
    kinds = (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies)
    return [part for parts in kinds for part in parts.values()]
