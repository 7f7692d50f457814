"""Few bits per coordinate: the choice of a grid, and the evenly spaced ones with unbiased rounding at random."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import kernels
from edgewise.codecs.codebook import nf4, pair, sign
from edgewise.codecs.eden import eden
from edgewise.codecs.scales import SLACK
from edgewise.core import demand
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn, derive, word
from edgewise.core.space import Kind, Space
from edgewise.core.stage import Memory, Payload, Stage

_SMALLEST = np.float32(2.0**-126)  # below, a block is sent as zeros (float32 denormals)
_LARGEST = np.float32(2.0**127 * (2.0 - 2.0**-7))  # the largest finite bfloat16


def block_scales(x: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """Largest magnitude of each block, rounded up to bfloat16 (the upper half of a float32)."""
    if x.size == 0:
        return np.zeros(0, np.float32)
    top = np.maximum.reduceat(np.abs(x), np.arange(0, x.size, block))
    up = ((np.minimum(top, _LARGEST).view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(top < _SMALLEST, np.float32(0.0), up)


def block_growth(block: int, level_max: int) -> float:
    """Largest ||Q(x)|| / ||x|| over one block and all outcomes of the rounding.

    Per unit of the grid the largest coordinate is at least L / SLACK and at most L afterwards; the adversary puts the
    other block - 1 coordinates just above an integer n, which may round to n + 1. By Dinkelbach's argument one n for
    all of them is worst: max_n sqrt((L^2 + (B-1)(n+1)^2) / ((L/SLACK)^2 + (B-1) n^2)).
    """
    top, rest = float(level_max), block - 1
    worst = max((top**2 + rest * (n + 1) ** 2) / ((top / SLACK) ** 2 + rest * n**2) for n in range(level_max))
    return sqrt(worst)


def shared_l2(l2: float, step: float, dim: int, level_max: int) -> float:
    """Worst case of ||Q(x)|| on a grid of ``step``: with r = l2/step, s^2 (r^2 + 2 min(r^2, r sqrt(d)) + d).

    Each |coordinate| n + f becomes at most n + 1, and sum n is at most sum n^2 (integers) and at most r sqrt(d); never
    more than (l2 + step sqrt(d))^2. Source of the latter: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, section 4.
    """
    full = step * level_max * sqrt(dim)
    if l2 == inf:
        return full
    r = l2 / step
    return min(full, step * sqrt(r * r + 2.0 * min(r * r, r * sqrt(dim)) + dim))


BITS = {"block": (1, 8), "shared": (1, 16), "eden": (1, 4), "sign": (1, 1), "nf4": (4, 4), "pair": (2, 2)}


def quantize(bits: int, grid: str = "block", block: int = 64) -> Stage:
    """Few bits per coordinate, on one of six grids.

    ``"block"``, ``"shared"``: evenly spaced, unbiased rounding at random (``even``). ``"eden"``: behind ``rotate``,
    unbiased over the rotation (``eden.eden``). ``"sign"``, ``"nf4"``, ``"pair"``: nearest values of a code book, biased
    (``codebook``).
    Args:
        bits: 1 to 8 ("block"), 1 to 16 ("shared"), 1 to 4 ("eden"), 1 ("sign"), 4 ("nf4"), 2 ("pair").
        grid: one of these. block: coordinates that share travelling scales, 2 to 65536; "shared" has none, "eden" uses
            the rotation's.
    Raises:
        RecipeError(E-VALUE) for what no grid has, with what there is; CompositionError of the grid.
    """
    if grid not in BITS:
        raise RecipeError("E-VALUE", f"quantize: grid is {grid!r}.", f"use one of {', '.join(BITS)}.")
    low, high = BITS[grid]
    if not low <= bits <= high:
        has = "; ".join(f"{name}: {a}" if a == b else f"{name}: {a} to {b}" for name, (a, b) in BITS.items())
        raise RecipeError("E-VALUE", f"quantize: the {grid} grid has no {bits} bits.", f"bits of the grids are {has}.")
    demand.between("quantize: block", block, 2, 65536)
    if grid == "eden":
        return eden(bits)
    if grid in ("block", "shared"):
        return even(bits, grid == "shared", block)
    return {"sign": sign, "nf4": nf4, "pair": pair}[grid](block)


def even(bits: int, shared: bool, block: int) -> Stage:
    """Round to integers of ``bits`` bits: ``q = floor(x / step + u)``, u uniform in [0, 1), so E[q step] = x.

    With L = 2^(bits-1) - 1 levels on each side of zero; with one bit the two values are -1 and 1 (no zero), L = 1, and
    1 is drawn with probability (1 + x / step) / 2.
    ``block``: step = (largest magnitude of the block, rounded up to bfloat16) / L; 16 bits per block travel. Algebra:
    scale 0 (travels), not summable, l2 times ``block_growth``, linf times 1 + 2^-7.
    ``shared``: step = linf / L from the space, nothing travels. Algebra: summable, l2 -> ``shared_l2``, linf stays.
    Guarantees: unbiased; deterministic given turn.private; the rounding of coordinate i depends on i and the key only.
    Edge cases: zero stays zero, but not with one bit; a block below 2^-126 is sent as zeros; above the largest bfloat16
    it saturates.
    Raises:
        CompositionError: E-NOT-REAL when quantized twice, E-NO-BOUND on a shared grid without a bound on each
            coordinate.
    Source: Alistarh et al. 2017 (QSGD), arXiv:1610.02132, section 3.1; variance at most step^2 / 4 per coordinate; one
        bit: Suresh et al. 2017, arXiv:1611.00429, section 2.
    """
    name = f"quantize({bits}, {'shared' if shared else 'block'})"
    top, stride = (1, 2) if bits == 1 else (2 ** (bits - 1) - 1, 1)
    growth = sqrt(block) * SLACK if bits == 1 else block_growth(block, top)

    def infer(space: Space) -> Space:
        demand.real(space, name)
        out = space.but(kind=Kind.INTEGER, level_max=top, stride=stride, bits=float(bits))
        if not shared:
            return out.but(scale=0.0, block=block, summable=False, l2=space.l2 * growth, linf=space.linf * SLACK)
        if space.linf == inf:
            raise CompositionError(
                "E-NO-BOUND",
                f"{name}: a grid shared by all devices needs a bound on each coordinate.",
                "put clamp or clip before it.",
            )
        step = space.linf / top
        l2 = step * sqrt(space.dim) if bits == 1 else shared_l2(space.l2, step, space.dim, top)
        return out.but(scale=step, block=0, l2=l2)

    def rounded(x: NDArray[np.float32], inverse: NDArray[np.float64], block: int, turn: Turn) -> NDArray[Any]:
        body: NDArray[Any] = np.empty(x.size, np.int8 if top <= 127 else np.int32)
        seed = np.uint64(word(derive(turn.private, "quantize", turn.round)))
        if bits == 1:
            kernels.flip_coins(x, inverse, block, seed, body)
        else:
            kernels.round_levels(x, inverse, block, top, seed, body)
        return body

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        x = payload.body
        if shared:
            return payload.but(body=rounded(x, np.array([top / space.linf]), max(1, x.size), turn)), memory
        if bits == 1:
            scales = block_scales(x, block)
            inverse = np.divide(1.0, scales, out=np.zeros(scales.size), where=scales > 0, dtype=np.float64)
            return payload.but(body=rounded(x, inverse, block, turn), scales=scales), memory
        body = np.empty(x.size, np.int8)
        seed = np.uint64(word(derive(turn.private, "quantize", turn.round)))
        return payload.but(scales=kernels.round_blocks(x, block, top, seed, body), body=body), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if shared:
            step = np.array([space.linf / top])
            return payload.but(body=kernels.unround(payload.body, step, max(1, payload.body.size)))
        assert payload.scales is not None
        return payload.but(
            body=kernels.unround(payload.body, payload.scales.astype(np.float64) / top, block), scales=None
        )

    return Stage(name, infer, encode, decode, pointwise=True)
