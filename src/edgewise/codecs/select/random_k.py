"""Random subset of the coordinates, the same on all devices of a round, so that contributions can be added."""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError, TrainingError
from edgewise.core.keys import Key, Turn, derive, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, keeps
from edgewise.kernels.hashing import choose_by_hash

HAIR = 1.0 - 2.0**-24  # A factor that keeps the float32 rounding of x * d / k within the bound.


@lru_cache(maxsize=4)
def _random_positions(key: Key, dim: int, k: int) -> NDArray[np.int64]:
    """Draw the positions of a round, sorted."""
    positions = choose_by_hash(dim, k, np.uint64(word(key)))
    positions.setflags(write=False)
    return positions


@part
def random_k(
    fraction: Annotated[float, Gt(0), Le(1), Doc("share of the coordinates that travels; 1 is the identity")],
    unbiased: Annotated[bool, Doc("scale by d/k so that the mean is right; false inside feedback")] = True,
    most: Annotated[float, Ge(0), Doc("largest factor of that scaling, from 1; 0 = no limit")] = 0.0,
    each: Annotated[bool, Doc("every device draws its own: less noise in the mean, but no blind sum")] = False,
) -> Stage:
    """Send random coordinates, by default the same ones on all devices of a round.

    ``k = max(1, round(fraction d))`` coordinates are drawn from the round's public key. No indices travel. With
    ``unbiased`` the kept coordinates are multiplied by d/k *before* they travel. The mean over supports is then x, and
    every later clip or quantizer sees exactly what enters the sum.

    Algebra: dim -> k. Linear and summable. The unbiased form has l2 -> l2 d/k and linf -> linf d/k (all of x may lie on
    the support). The biased form keeps both. With m = ``most`` below d/k the factor is m. The mean over supports is
    then x m k/d, with a variance of m^2 k/d (1 - k/d) ||x||^2, which is at most m times instead of d/k - 1 times.
    ``moving``: positions change every round, so no later stage may keep memory per position. ``each``: every device
    draws its own positions, from its name too. The variance that the choice adds to a mean of n devices is then divided
    by n. Not summable.
    Guarantees: uniform over supports. Equal on every platform and library version (own counter-based sampler, O(d)
    time, O(k) memory).
    Args:
        most: largest factor, for the unbiased form only. The biased form has no factor.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL, E-ORDER.
        TrainingError: E-RANGE if x d/k overflows.
    Source: Konečný et al. 2016, arXiv:1610.05492, section 3 (random mask). Variance d/k - 1 times ||x||^2.
    """
    if most and not most >= 1.0:
        raise RecipeError("E-VALUE", f"random_k: most is {most!r}, must be at least 1.", "leave it out for no limit.")
    limit = f", at most {most:g} times" if most else ""
    limit += ", each its own" if each else ""
    name = f"random_k({fraction:g}{limit})" if unbiased else f"random_k({fraction:g}, biased{limit})"
    if most and not unbiased:
        what = f"random_k: most = {most:g} limits a factor, and unbiased = false has no factor."
        raise RecipeError("E-VALUE", what, "leave out one of the two.")

    def size(space: Space) -> int:
        return min(space.dim, max(1, round(fraction * space.dim)))

    def gain(space: Space) -> float:
        return min(most or inf, space.dim / size(space)) if unbiased and space.dim else 1.0

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse:
            raise CompositionError(
                "E-ORDER", f"{name}: an earlier stage chose a per-device support.", f"put {name} first."
            )
        k, g = size(space), gain(space)
        return space.but(
            dim=k,
            l2=space.l2 * g,
            linf=space.linf * g,
            gain=space.gain * g,
            moving=space.moving or k < space.dim,
            summable=space.summable and not (each and k < space.dim),
            unbiased=space.unbiased and (k == space.dim or (unbiased and k * (most or inf) >= space.dim)),
        )

    def positions(space: Space, turn: Turn) -> NDArray[np.int64]:
        names = (turn.device or "",) if each else ()  # the stream of keys is that of an empty name
        return _random_positions(derive(turn.public, "random_k", turn.round, *names), space.dim, size(space))

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        if size(space) == space.dim:
            return payload, memory
        body = payload.body[positions(space, turn)]
        g = gain(space)
        if g != 1.0:
            with np.errstate(over="ignore"):
                body = np.multiply(body, g * HAIR, dtype=np.float64).astype(np.float32)
            if not np.isfinite(body).all():
                raise TrainingError("E-RANGE", f"{name}: coordinates times {g:g} overflow float32.", "clip before it.")
        return payload.but(body=body), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if size(space) == space.dim:
            return payload
        where = positions(space, turn)
        return payload.but(support=where if payload.support is None else where[payload.support])

    def says(before: Space, after: Space) -> str:
        whose = "by each device for itself" if each else "the same on all devices"
        return f"{keeps(before, after)}, drawn anew each round, {whose}"

    return Stage(name, infer, encode, decode, says, takes_support=True)
