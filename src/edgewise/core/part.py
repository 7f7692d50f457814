"""Parts of a recipe, each made of one function whose signature is its schema.

    @part
    def top_k(fraction: Annotated[float, Gt(0), Le(1), Doc("share of the coordinates that travels")]) -> Stage:
        \"\"\"Keep the coordinates of largest magnitude.\"\"\"

Everything else is derived from the function. Its name is the name in a recipe (``kind = "top_k"``). Its return type is
the kind of part. Its parameters are the keys, with types, limits, defaults and descriptions. A caller in Python is held
to the same limits.

The plan supplies four arguments, which are no keys of a recipe: ``spec``, ``inner``, ``phase`` and ``population``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, update_wrapper
from math import isfinite
from typing import Annotated, Any, Generic, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints, overload

from annotated_types import Ge, Gt, Le, Lt, MinLen

from edgewise.core.errors import RecipeError

P = ParamSpec("P")
T = TypeVar("T")

# The layout of the update, the stages after this one, the group whose turn it is, and the number of devices.
GIVEN = ("spec", "inner", "phase", "population")


@dataclass(frozen=True, slots=True)
class Doc:
    """Description of a key, for ``edgewise schema`` and editors."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a part.

    Attributes:
        hint: its type with its limits.
        default: ``inspect.Parameter.empty`` if the key is required.
    """

    hint: Any
    default: Any


class Part(Generic[P, T]):
    """A function that makes a part. A call checks the limits of its signature first.

    ``turns`` is for a stage that moves another group of segments in each round: (keys, spec) -> the groups, in turn.
    The function then takes ``phase``, the number of the group.
    """

    def __init__(self, function: Callable[P, T], name: str | None, turns: Callable[..., Any] | None) -> None:
        update_wrapper(self, function)
        self.function, self.turns = function, turns
        self.name = name or function.__name__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Make the part.

        Raises:
            RecipeError: E-VALUE for an argument outside its limits, and any error of the function itself.
        """
        for key, value in self._function_signature.bind(*args, **kwargs).arguments.items():
            if key in self.fields:
                _check_parameter(f"{self.name}: {key}", value, self.fields[key].hint)
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<part {self.name}>"

    @property
    def summary(self) -> str:
        """First paragraph of the docstring, on one line."""
        return " ".join((self.__doc__ or "").split("\n\n")[0].split())

    @cached_property
    def makes(self) -> Any:
        """Return type of the function: ``Stage``, ``Merge``, ``Post`` or ``Strategy``."""
        return self._parameter_hints.get("return")

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """Keys that a recipe may set."""
        parameters = self._function_signature.parameters.items()
        return {k: Field(self._parameter_hints[k], p.default) for k, p in parameters if k not in GIVEN}

    @cached_property
    def given(self) -> tuple[str, ...]:
        """Names of the arguments that the plan supplies."""
        return tuple(name for name in self._function_signature.parameters if name in GIVEN)

    @cached_property
    def _function_signature(self) -> inspect.Signature:
        """Signature of the part's function."""
        return inspect.signature(self.function)

    @cached_property
    def _parameter_hints(self) -> dict[str, Any]:
        """Type hints of the part's parameters, with their limits."""
        return get_type_hints(self.function, include_extras=True)


@overload
def part(function: Callable[P, T]) -> Part[P, T]: ...


@overload
def part(
    *, name: str | None = None, turns: Callable[..., Any] | None = None
) -> Callable[[Callable[P, T]], Part[P, T]]: ...


def part(function: Any = None, *, name: str | None = None, turns: Callable[..., Any] | None = None) -> Any:
    """Make a part of a function (see the module).

    ``name`` is the name in recipes, if it differs from the function's.
    """
    if function is None:
        return lambda function: Part(function, name, turns)
    return Part(function, name, turns)


def _check_parameter(what: str, value: Any, hint: Any) -> None:
    """Raise RecipeError(E-VALUE) unless ``value`` is within the limits of ``hint``."""
    if value is None:
        return
    options = [option for kind in _hint_alternatives(hint) if get_origin(kind) is Literal for option in get_args(kind)]
    if options and value not in options:
        raise RecipeError("E-VALUE", f"{what} is {value!r}.", f"use {', '.join(map(str, options))}.")
    if isinstance(value, float) and not isfinite(value):
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be finite.", "choose a finite value.")
    limits = list(_hint_limits(hint))
    if not all(_limit_holds(value, limit) for limit in limits):
        wanted = " and ".join(_limit_in_words(limit) for limit in limits)
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be {wanted}.", "choose a value in that range.")


def _hint_alternatives(hint: Any) -> tuple[Any, ...]:
    """List the alternatives of a hint, without annotations."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return (bare, *get_args(bare)) if get_origin(bare) is not Literal else (bare,)


def _hint_limits(hint: Any) -> Iterator[Any]:
    """Yield the limits that a hint's annotations set."""
    if get_origin(hint) is Annotated:
        yield from (m for m in get_args(hint)[1:] if isinstance(m, Gt | Ge | Lt | Le | MinLen))


def _limit_holds(value: Any, limit: Any) -> bool:
    """Tell whether a value keeps a limit."""
    match limit:
        case Gt(gt=low):
            return bool(value > low)
        case Ge(ge=low):
            return bool(value >= low)
        case Lt(lt=high):
            return bool(value < high)
        case Le(le=high):
            return bool(value <= high)
    return bool(len(value) >= limit.min_length)


def _limit_in_words(limit: Any) -> str:
    """Describe a limit: ``above 0``."""
    match limit:
        case Gt(gt=low):
            return f"above {low:g}"
        case Ge(ge=low):
            return f"at least {low:g}"
        case Lt(lt=high):
            return f"below {high:g}"
        case Le(le=high):
            return f"at most {high:g}"
    return f"of {limit.min_length} or more"
