"""What a script on the server gives in place of a recipe's parts, and functions that it wants called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.part import Part
from edgewise.drivers import extension_packages
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
    if given not in _shipped() and not _entry_point(given):
        what = f"{where}: the part {given.name} is your own, and a server sends no code: devices do not have it."
        fix = "put it into an installed package with an entry point, on devices too: `edgewise explain extend`."
        raise RecipeError("E-EXTENSION", what, fix)
    return {"kind": given.name, **keys}


def modules(parts: Iterable[Any]) -> list[str]:
    """The entry points of installed packages that bring those of these parts which are given as objects."""
    bare = [given.func if isinstance(given, partial) else given for given in parts]
    own = {_entry_point(part) for part in bare if isinstance(part, Part) and part not in _shipped()}
    return sorted(own - {""})


def functions(where: str, given: Iterable[Any]) -> None:
    """Raises RecipeError(E-TYPE) for what cannot be called: before devices work for it."""
    for one in given:
        if not callable(one):
            what = f"{where}: {one!r:.80} cannot be called."
            raise RecipeError("E-TYPE", what, "give a function that takes an edgewise.Round.")


def _entry_point(part: AnyPart) -> str:
    return extension_packages.module_of(part.function.__module__)


def _shipped() -> list[AnyPart]:
    kinds = (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies)
    return [part for parts in kinds for part in parts.values()]
