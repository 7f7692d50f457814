"""What a part demands of its arguments and of the space before it, said in one voice."""

from __future__ import annotations

from math import inf

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Kind, Space


def positive(what: str, value: float, high: float = inf) -> None:
    """Raise RecipeError(E-VALUE) unless ``0 < value <= high`` and value is finite (NaN never is)."""
    if not (0.0 < value <= high and value < inf):
        limit = f"above 0 and at most {high:g}" if high < inf else "above 0 and finite"
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be {limit}.", "choose a value in that range.")


def between(what: str, value: float, low: float, high: float) -> None:
    """Raise RecipeError(E-VALUE) unless ``low <= value <= high`` (NaN never is)."""
    if not low <= value <= high:
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be {low:g} to {high:g}.", "choose a value in it.")


def real(space: Space, who: str) -> None:
    """Raise CompositionError unless the body before ``who`` is real numbers (E-NOT-REAL), the same ones on every device
    (E-ORDER behind a ladder)."""
    if space.rungs:
        raise CompositionError(
            "E-ORDER", f"{who}: behind a ladder every device has another encoding.", f"put {who} before the ladder."
        )
    if space.kind is not Kind.REAL:
        raise CompositionError(
            "E-NOT-REAL",
            f"{who} works on real numbers, but the body before it is already {space.kind.value}.",
            f"put {who} before quantize.",
        )
