"""Checks of a part's arguments, and of the space before it, that all parts share."""

from __future__ import annotations

from math import inf

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Kind, Space


def positive(what: str, value: float, high: float = inf) -> None:
    """Refuse an argument by RecipeError(E-VALUE) unless ``0 < value <= high`` and it is finite (NaN is refused)."""
    if not (0.0 < value <= high and value < inf):
        limit = f"above 0 and at most {high:g}" if high < inf else "above 0 and finite"
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be {limit}.", "choose a value in that range.")


def between(what: str, value: float, low: float, high: float) -> None:
    """Refuse an argument by RecipeError(E-VALUE) unless ``low <= value <= high`` (NaN is refused)."""
    if not low <= value <= high:
        raise RecipeError("E-VALUE", f"{what} is {value!r}, must be {low:g} to {high:g}.", "choose a value in it.")


def still(space: Space, who: str, why: str, fix: str) -> None:
    """Refuse a chain by CompositionError(E-ORDER) if the positions before ``who`` change every round.

    ``who`` keeps memory per position. ``why`` says what would go wrong, and follows the word "so".
    """
    if space.sparse or space.moving:
        raise CompositionError("E-ORDER", f"{who}: the positions before it change every round, so {why}.", fix)


def contracting(space: Space, who: str) -> None:
    """Refuse a chain by CompositionError(E-COMBO) if the memory of ``who`` would grow from round to round.

    The memory takes in the error of the quantizer every round. It grows if that error is larger than the encoded vector
    (``Space.quantized``).
    """
    if space.quantized >= 1.0:
        raise CompositionError(
            "E-COMBO",
            f"{who}: the quantizer's error is {space.quantized:.3g} times what it encodes (squared norms, normal "
            "values), so what is remembered grows.",
            'use 3 bits or more, grid = "eden" after rotate, or grid = "pair" after top_k.',
        )


def real(space: Space, who: str) -> None:
    """Refuse a chain by CompositionError unless ``who`` gets real numbers, in the same encoding on every device.

    Raises:
        CompositionError: E-NOT-REAL for a body of integers or residues. E-ORDER behind a ladder.
    """
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
    """Refuse a chain by CompositionError(E-ADJ-MIX) unless a neighbour sends zeros and zeros are encoded to zeros.

    The privacy accounting of ``who`` measures distances from zero.
    """
    if space.adjacency != "zero_out" or not space.keeps_zero:
        raise CompositionError(
            "E-ADJ-MIX",
            f"{who}: its accounting assumes neighbours that send zeros. Here a neighbour sends something else.",
            "leave out the stage before it that does not encode zeros as zeros.",
        )
