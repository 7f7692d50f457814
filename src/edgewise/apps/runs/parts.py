"""Parts of a recipe as Python objects: ``edgewise.clip(1.0)``, and your own by ``@edgewise.part``.

    stages=[ew.weigh(), ew.clip(1.0), my_codec(3)]      a part with its arguments
    strategy=ew.fedadam(lr=0.01)

A call gives the part's table in a recipe, so the part is checked, reported and resumed as any other. The plan makes
the part later, when it knows the layout of the update and the stages inside the part.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgewise.core.errors import RecipeError
from edgewise.core.part import Part
from edgewise.core.part import part as as_part
from edgewise.plan.catalogue import BUILT_IN, AnyPart, look_up


@dataclass(frozen=True)
class ChosenPart:
    """A part and its arguments by name."""

    part: AnyPart
    keys: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"{self.part.name}({', '.join(f'{k}={v!r}' for k, v in self.keys.items())})"


class Chooser:
    """A part that waits for its arguments. Call it to get a ``ChosenPart``."""

    def __init__(self, part: AnyPart) -> None:
        self.part = part
        self.__doc__, self.__name__ = part.__doc__, part.name
        signature = inspect.signature(part.function)
        asked = [p for name, p in signature.parameters.items() if name in part.fields]
        self.__signature__ = signature.replace(parameters=asked)

    def __call__(self, *args: Any, **keys: Any) -> ChosenPart:
        """Choose the part with these arguments.

        Raises RecipeError: E-TYPE for arguments that its function does not take, E-VALUE for one beyond its limits.
        """
        try:
            bound = dict(self.__signature__.bind(*args, **keys).arguments)
        except TypeError as e:
            raise RecipeError("E-TYPE", f"{self.part.name}{self.__signature__}: {e}.", "see its docstring.") from None
        look_up({self.part.name: self.part}, self.part.name, {"kind": self.part.name, **bound})
        return ChosenPart(self.part, bound)

    def __repr__(self) -> str:
        return f"<part {self.part.name}>"


def part(function: Callable[..., Any]) -> Chooser:
    """Make a part of a function that returns a ``Stage``, ``Merge``, ``Post`` or ``Strategy``.

    The function's signature is the part's schema (``core.part``). ``edgewise.Extension(parts=[...])`` takes the part
    too.

    Raises RecipeError(E-EXTENSION) for a function whose signature says too little.
    """
    made = as_part(function)
    _ = made.fields
    return Chooser(made)


def shipped(name: str) -> Chooser:
    """Return a part of edgewise by its name in a recipe. Raises KeyError for another name."""
    for parts in (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies):
        if name in parts:
            return Chooser(parts[name])
    raise KeyError(name)


def is_shipped(given: AnyPart) -> bool:
    """Tell whether a part comes with edgewise."""
    kinds = (BUILT_IN.stages, BUILT_IN.merges, BUILT_IN.posts, BUILT_IN.strategies)
    return any(given is one for parts in kinds for one in parts.values())


def part_table(given: Any, where: str) -> tuple[dict[str, Any], AnyPart | None]:
    """Return a part's table in a recipe, and the part itself if it was given as an object.

        {"kind": "top_k", "fraction": 0.1}   "fedavg"   ew.top_k(0.1)   my_part   functools.partial(top_k, fraction=0.1)

    Raises RecipeError(E-EXTENSION) for anything else.
    """
    if isinstance(given, Mapping):
        return dict(given), None
    if isinstance(given, str):
        return {"kind": given}, None
    if (part := part_of(given)) is None:
        what = f"{where} is a {type(given).__name__}, of which nobody can tell the name and the keys."
        fix = f'give a table, {{"kind": "{where}", ...}}, a part as ew.clip(1.0), or write @ew.part above a function.'
        raise RecipeError("E-EXTENSION", what, fix)
    keys = given.keys if isinstance(given, ChosenPart) else given.keywords if isinstance(given, partial) else {}
    return {"kind": part.name, **keys}, part


def part_of(given: Any) -> AnyPart | None:
    """Return the part behind an object, without its arguments. None: the object is no part."""
    if isinstance(given, partial) and not given.args:
        given = given.func
    if isinstance(given, ChosenPart | Chooser):
        return given.part
    return given if isinstance(given, Part) else None
