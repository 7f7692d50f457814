"""Clipping of one contribution: of its Euclidean norm, or of every coordinate. Both are biased and cheap.

stage = clip(1.0)               L2 norm of the update at most 1.0
stage = clamp(linf=0.1)         every coordinate within [-0.1, 0.1]
"""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec, Vector, norm_l2

HAIR = 1.0 - 2.0**-23  # It makes up for float32 rounding, which can lengthen a vector by 2^-24.
SMALLEST, LARGEST = 1e-30, 1e30  # Bounds outside this range would meet the limits of float32.


def _keep_payload(payload: Payload, space: Space, turn: Turn) -> Payload:
    """Decode a clipped payload: it stays as it is."""
    return payload


def _refuse_factors(space: Space, name: str) -> None:
    """Refuse a clip of factors, whose product it would not bound."""
    if space.rank:
        raise CompositionError(
            "E-ORDER",
            f"{name}: it would bound the factors of low_rank, and their product can be longer than both.",
            f"put {name.split('(')[0]} before low_rank.",
        )


@part
def clip(l2: Annotated[float, Ge(SMALLEST), Le(LARGEST), Doc("longest update, in model units")]) -> Stage:
    """Scale the update down to an L2 norm of at most ``l2``: ``x * min(1, l2 / ||x||)``.

    Algebra: l2 -> min(l2, C), linf -> min(linf, C). Biased unless the bound already held. The head is untouched.
    Guarantees: the float64 norm of the float32 result is at most C (a clipped vector is shortened by 2^-23 more).
    Edge cases: zero stays zero. A vector of norm exactly C is unchanged.
    Args:
        l2: C, model units, 1e-30 to 1e30.
    Raises:
        RecipeError(E-VALUE); CompositionError: E-NOT-REAL after a quantizer, E-ORDER after low_rank.
    Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
    """
    name = f"clip({l2:g})"

    def infer(space: Space) -> Space:
        require.real(space, name)
        _refuse_factors(space, name)
        unbiased = space.unbiased and space.l2 <= l2
        return space.but(l2=min(space.l2, l2), linf=min(space.linf, l2), unbiased=unbiased, clipped=True)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=_clipped_to_norm(payload.body, l2)), memory

    return Stage(name, infer, encode, _keep_payload, _norm_in_words, takes_support=True, pointwise=True)


def _norm_in_words(before: Space, after: Space) -> str:
    """Describe the bound of a clip."""
    return f"L2 norm at most {after.l2:.4g}"


def _clipped_to_norm(x: Vector, l2: float) -> Vector:
    """Shorten a vector to a norm, a hair below it so that rounding does not exceed it."""
    norm = norm_l2(x)
    return x if norm <= l2 else np.multiply(x, l2 / norm * HAIR, dtype=np.float64).astype(np.float32)


@part
def clip_tensors(spec: Spec, l2: Annotated[float, Ge(SMALLEST), Le(LARGEST)]) -> Stage:
    """Scale every tensor of the update on its own down to an L2 norm of at most ``l2``.

    Then one layer that moves far does not silence all others. The price is a longer whole vector for the same noise.
    Algebra: l2 -> min(l2, C sqrt(tensors)), linf -> min(linf, C). Biased unless the bound already held.
    Args:
        spec: the tensors of the update. l2: C, model units, 1e-30 to 1e30.
    Raises:
        RecipeError(E-VALUE); CompositionError: E-NOT-REAL after a quantizer, E-ORDER where the body is no longer the
            whole update, one coordinate after the other.
    Source: McMahan et al. 2018, arXiv:1710.06963, per-layer clipping.
    """
    name = f"clip_tensors({l2:g})"
    joint = l2 * sqrt(len(spec.segments))

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.dim != spec.dim or space.sparse or space.rank or space.rotated:
            raise CompositionError(
                "E-ORDER",
                f"{name}: after a stage that selects, rotates or factors coordinates there are no tensors any more.",
                "put it first, or clip the update as one vector.",
            )
        unbiased = space.unbiased and space.l2 <= l2
        return space.but(l2=min(space.l2, joint), linf=min(space.linf, l2), unbiased=unbiased, clipped=True)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        parts = [_clipped_to_norm(payload.body[s.start : s.stop], l2) for s in spec.segments]
        return payload.but(body=np.concatenate(parts)), memory

    def says(before: Space, after: Space) -> str:
        return f"every tensor at most {l2:.4g} long, so {_norm_in_words(before, after)}"

    return Stage(name, infer, encode, _keep_payload, says, pointwise=True)


@part
def clamp(
    linf: Annotated[float | None, Ge(SMALLEST), Le(LARGEST), Doc("largest coordinate, in model units")] = None,
    stds: Annotated[
        float | None,
        Ge(0.1),
        Le(100.0),
        Doc("largest coordinate, in standard deviations l2 / sqrt(d) that the clip before it leaves"),
    ] = None,
) -> Stage:
    """Clamp every coordinate to ``[-c, c]``, with c = ``linf``, or c = ``stds`` l2 / sqrt(d).

    Algebra: linf -> min(linf, c), l2 -> min(l2, c sqrt(d)). Biased unless the bound already held.
    Guarantees: no coordinate of the float32 result exceeds c (c is rounded down to float32).
    Args:
        linf: c, model units, 1e-30 to 1e30. stds: c in standard deviations of a coordinate of a rotated vector of d
            coordinates that is as long as its bound l2, 0.1 to 100. Give exactly one of the two.
    Raises:
        RecipeError(E-VALUE); CompositionError: E-NOT-REAL after a quantizer, E-ORDER after low_rank, E-NO-BOUND for
            ``stds`` where nothing bounds l2.
    """
    if (linf is None) == (stds is None):
        raise RecipeError("E-VALUE", "clamp: linf and stds both set its bound.", "give exactly one of them.")
    name = f"clamp({linf:g})" if linf is not None else f"clamp({stds:g} std)"

    def bound(space: Space) -> float:
        return linf if linf is not None else (stds or 0.0) * space.l2 / sqrt(space.dim)

    def infer(space: Space) -> Space:
        require.real(space, name)
        _refuse_factors(space, name)
        if linf is None and not isfinite(space.l2):
            what = f"{name}: a standard deviation follows from the length of an update, which nothing bounds here."
            raise CompositionError("E-NO-BOUND", what, "put clip with l2 before it, or give clamp a linf.")
        c = bound(space)
        return space.but(
            linf=min(space.linf, c),
            l2=min(space.l2, c * sqrt(space.dim)),
            unbiased=space.unbiased and space.linf <= c,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        c = bound(space)
        edge = np.float32(c)
        if float(edge) > c:
            edge = np.nextafter(edge, np.float32(0.0))
        return payload.but(body=np.clip(payload.body, -edge, edge)), memory

    def says(before: Space, after: Space) -> str:
        return f"every coordinate at most {after.linf:.4g}"

    return Stage(name, infer, encode, _keep_payload, says, takes_support=True, pointwise=True)
