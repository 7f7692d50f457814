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


def still(space: Space, who: str, why: str, fix: str) -> None:
    """Raise CompositionError(E-ORDER) where the positions before ``who``, which remembers per position, change every
    round. ``why``: what would go wrong, after a "so"."""
    if space.sparse or space.moving:
        raise CompositionError("E-ORDER", f"{who}: the positions before it change every round, so {why}.", fix)


def contracting(space: Space, who: str) -> None:
    """Raise CompositionError(E-COMBO) where what ``who`` remembers would grow: the quantizer's error is added to it
    every round, and is larger than what was encoded (``Space.quantized``)."""
    if space.quantized >= 1.0:
        raise CompositionError(
            "E-COMBO",
            f"{who}: the quantizer's error is {space.quantized:.3g} times what it encodes (squared norms, normal "
            "values), so what is remembered grows.",
            'use 3 bits or more, grid = "eden" after rotate, or grid = "pair" after top_k.',
        )


def real(space: Space, who: str) -> None:
    """Raise CompositionError unless the body before ``who`` is real numbers (E-NOT-REAL), the same ones on every device
    (E-ORDER behind a ladder)."""
    if space.rungs:
        raise CompositionError(
            "E-ORDER", f"{who}: behind a ladder every device has another encoding.", f"put {who} before the ladder."
        )
    if space.grid.kind is not Kind.REAL:
        raise CompositionError(
            "E-NOT-REAL",
            f"{who} works on real numbers, but the body before it is already {space.grid.kind.value}.",
            f"put {who} before quantize.",
        )


def neighbours_at_zero(space: Space, who: str) -> None:
    """Raise CompositionError(E-ADJ-MIX) unless a neighbouring device sends zeros, and zeros are encoded to zeros: the
    accounting of ``who`` measures from there."""
    if space.adjacency != "zero_out" or not space.keeps_zero:
        raise CompositionError(
            "E-ADJ-MIX",
            f"{who}: it is accounted for neighbours that send zeros, and here a neighbour sends something else.",
            "leave out the stage before it that does not encode zeros as zeros.",
        )
