"""Parts, functions and figures that a script gives to ``edgewise.Server``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from edgewise.apps.runs import parts
from edgewise.core.errors import RecipeError
from edgewise.drivers import extension_packages
from edgewise.plan.catalogue import AnyPart


def given_part_table(given: Any, where: str) -> dict[str, Any]:
    """Return a part's table, as ``apps.runs.parts.part_table``.

    Raises RecipeError(E-EXTENSION) for a part that devices do not have, and for an object that is no part.
    """
    found, part = parts.part_table(given, where)
    if part is not None and not parts.is_shipped(part) and not _entry_point(part):
        what = f"{where}: the part {part.name} is your own, and a server sends no code: devices do not have it."
        fix = "put it into an installed package with an entry point, on devices too: `edgewise explain extend`."
        raise RecipeError("E-EXTENSION", what, fix)
    return found


def given_modules(given: Iterable[Any]) -> list[str]:
    """List the entry points of installed packages that bring the parts given as objects."""
    found = [part for part in map(parts.part_of, given) if part is not None]
    own = {_entry_point(part) for part in found if not parts.is_shipped(part)}
    return sorted(own - {""})


def check_given_functions(where: str, given: Iterable[Any]) -> None:
    """Check functions before devices work for the script.

    Raises RecipeError(E-TYPE) for an object that cannot be called.
    """
    for one in given:
        if not callable(one):
            what = f"{where}: {one!r:.80} cannot be called."
            raise RecipeError("E-TYPE", what, "give a function that takes an edgewise.Round.")


def check_given_figures(found: Any, taken: Mapping[str, float]) -> Mapping[str, float]:
    """Check the figures that a script's ``metrics`` returned for a round, and return them.

    Raises RecipeError: E-TYPE for anything but a mapping of names to numbers. E-VALUE for a name of devices' metrics.
    """
    if not isinstance(found, Mapping) or not all(isinstance(value, Real) for value in found.values()):
        what = f"metrics gave {type(found).__name__} for a round, and not numbers by name."
        raise RecipeError("E-TYPE", what, 'return something like {"accuracy": 0.9}.')
    if twice := sorted(found.keys() & taken.keys()):
        what = f"metrics gave {twice[0]}, which devices give already."
        raise RecipeError("E-VALUE", what, "take another name.")
    return found


def _entry_point(part: AnyPart) -> str:
    return extension_packages.package_entry_point(part.function.__module__)
