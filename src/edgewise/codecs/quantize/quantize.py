"""Quantization to few bits per coordinate: the choice of a grid, and the evenly spaced grids with random rounding."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import erfc, inf, sqrt
from statistics import NormalDist
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from edgewise.codecs.quantize.codebook import nf4_codebook, pair_codebook, sign_codebook
from edgewise.codecs.quantize.eden import eden
from edgewise.codecs.quantize.scales import SLACK, block_scales, quantizer_words
from edgewise.core import require
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Space
from edgewise.core.stage import Stage
from edgewise.kernels.rounding import flip_coins, round_blocks, round_levels, unround


def quantized_growth(block: int, level_max: int) -> float:
    """Bound ||Q(x)|| / ||x|| over one block and all outcomes of the rounding.

    In units of the grid the largest coordinate is at least L / SLACK, and at most L afterwards. The adversary puts the
    other block - 1 coordinates just above an integer n, which may round to n + 1. By Dinkelbach's argument one n for
    all of them is worst: max_n sqrt((L^2 + (B-1)(n+1)^2) / ((L/SLACK)^2 + (B-1) n^2)).
    """
    top, rest = float(level_max), block - 1
    worst = max((top**2 + rest * (n + 1) ** 2) / ((top / SLACK) ** 2 + rest * n**2) for n in range(level_max))
    return sqrt(worst)


def shared_grid_l2(l2: float, step: float, dim: int, level_max: int) -> float:
    """Bound ||Q(x)|| on a grid of ``step``: with r = l2/step, sqrt(s^2 (r^2 + 2 min(r^2, r sqrt(d)) + d)).

    Each |coordinate| n + f becomes at most n + 1. sum n is at most sum n^2 (integers) and at most r sqrt(d). The bound
    is never more than l2 + step sqrt(d). Source of the latter: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, section 4.
    """
    full = step * level_max * sqrt(dim)
    if l2 == inf:
        return full
    r = l2 / step
    return min(full, step * sqrt(r * r + 2.0 * min(r * r, r * sqrt(dim)) + dim))


@lru_cache(maxsize=256)
def quantized_block_error(bits: int, block: int, share: float) -> float:
    """Expected ||Q(x) - x||^2 / ||x||^2 of random rounding on a block's grid.

    x is the ``share`` of normal values with the largest magnitudes. The result is E[step^2 f (1 - f)] / E[x^2],
    with f the position between two grid points. It is integrated over the block's largest magnitude s (64 quantiles of
    the largest of ``block``), which is exact itself, and over the other block - 1 magnitudes below it. Rounding of s to
    bfloat16 is left out (at most 2^-7 of s).
    """
    smallest = NormalDist().inv_cdf(1.0 - share / 2.0) if share < 1.0 else 0.0
    edge = smallest + np.linspace(0.0, 9.0, 4097)
    below = 1.0 - np.array([erfc(v / sqrt(2.0)) for v in edge.tolist()]) / share
    x, mass = (edge[1:] + edge[:-1]) / 2.0, np.diff(below)
    top, errors = 2 ** (bits - 1) - 1, []
    for s in np.interp(((np.arange(64) + 0.5) / 64) ** (1.0 / block), below, edge).tolist():
        inside = np.where(x <= s, mass, 0.0)
        step = s / top if top else 2.0 * s
        f = (x + s) / step % 1.0
        errors.append(step**2 * float((inside * f * (1.0 - f)).sum() / inside.sum()))
    return float(np.mean(errors)) * (block - 1) / block / float((mass * x**2).sum())


# Smallest, largest and default number of bits of each grid.
BITS: dict[str, tuple[int, int, int | None]] = {
    "block": (1, 8, 8),
    "shared": (1, 16, 8),
    "eden": (1, 4, None),
    "sign": (1, 1, 1),
    "nf4": (4, 4, 4),
    "pair": (2, 2, 2),
}


@part
def quantize(
    bits: Annotated[int | None, Ge(1), Le(16), Doc("block 1-8, shared 1-16 (default 8); eden 1-4; others: one")] = None,
    grid: Annotated[
        Literal["block", "shared", "eden", "sign", "pair", "nf4"],
        Doc(
            "unbiased: block (a scale per block travels), shared (one public grid), eden (after rotate); "
            "biased: sign, pair (two magnitudes), nf4"
        ),
    ] = "block",
    block: Annotated[int | None, Ge(8), Le(65536), Doc("coordinates per scale (default 64); not shared, eden")] = None,
) -> Stage:
    """Send few bits per coordinate, on one of six grids.

    ``"block"``, ``"shared"``: evenly spaced, with unbiased random rounding (``even_grid``). ``"eden"``: after
    ``rotate``, unbiased over the rotation (``eden.eden``). ``"sign"``, ``"nf4"``, ``"pair"``: nearest values of a code
    book, biased (``codebook``).

    Args:
        bits: 1 to 8 ("block", default 8), 1 to 16 ("shared", default 8), 1 to 4 ("eden"), 1 ("sign"), 4 ("nf4"), 2
            ("pair").
        grid: one of the six.
        block: coordinates that share travelling scales. "shared" has none, and "eden" uses the rotation's.
    Raises:
        RecipeError: E-VALUE for bits that the grid does not have, with those that it has. E-MISSING for "eden" without
            bits. E-COMBO for a block that the grid does not use.
        CompositionError: as the grid.
    """
    low, high, usual = BITS[grid]
    many = usual if bits is None else bits
    has = f"{low}" if low == high else f"{low} to {high}"
    if many is None:
        raise RecipeError("E-MISSING", f"quantize: the {grid} grid needs bits.", f"choose {has}.")
    if not low <= many <= high:
        raise RecipeError("E-VALUE", f"quantize: the {grid} grid has no {many} bits.", f"its bits are {has}.")
    if block is not None and grid in ("shared", "eden"):
        why = "has no scales that travel" if grid == "shared" else "uses the blocks of rotate"
        raise RecipeError("E-COMBO", f"quantize: block is {block}, but the {grid} grid {why}.", "remove block.")
    share = 64 if block is None else block
    if grid == "eden":
        return eden(many)
    if grid in ("block", "shared"):
        return even_grid(many, grid == "shared", share)
    return {"sign": sign_codebook, "nf4": nf4_codebook, "pair": pair_codebook}[grid](share)


def even_grid(bits: int, shared: bool, block: int) -> Stage:
    """Round to integers of ``bits`` bits: ``q = floor(x / step + u)``, u uniform in [0, 1), so E[q step] = x.

    There are L = 2^(bits-1) - 1 levels on each side of zero. With one bit the two values are -1 and 1 (no zero), L = 1,
    and 1 is drawn with probability (1 + x / step) / 2.

    ``block``: step = (largest magnitude of the block, rounded up to bfloat16) / L. 16 bits per block travel. Algebra:
    scale 0 (travels), not summable, l2 times ``quantized_growth``, linf times 1 + 2^-7.

    ``shared``: step = linf / L from the space. Nothing travels. Algebra: summable, l2 -> ``shared_grid_l2``, linf
    stays.

    Guarantees: unbiased. Deterministic given turn.private. The rounding of coordinate i depends on i and the key only.
    Edge cases: zero stays zero, except with one bit on a shared grid (``Space.keeps_zero``). A block below 2^-126 is
    sent as zeros. Above the largest bfloat16 it saturates.
    Raises:
        CompositionError: E-NOT-REAL if quantized twice, E-NO-BOUND on a shared grid without a bound on each coordinate.
    Source: Alistarh et al. 2017 (QSGD), arXiv:1610.02132, section 3.1. Variance at most step^2 / 4 per coordinate. One
    bit: Suresh et al. 2017, arXiv:1611.00429, section 2.
    """
    name = f"quantize({bits}, {'shared' if shared else 'block'})"
    top, stride = (1, 2) if bits == 1 else (2 ** (bits - 1) - 1, 1)
    growth = sqrt(block) * SLACK if bits == 1 else quantized_growth(block, top)

    def infer(space: Space) -> Space:
        require.real(space, name)
        grid = Grid(Kind.INTEGER, float(bits), 0.0, top, stride, block=block)
        if not shared:
            # One bit has no zero. Small values are then sent as large as the block's largest, after top_k too. That
            # error stays in the memory, which diverges there, although the largest of normals have similar sizes.
            share = space.dim / space.universe if space.sparse and bits > 1 else 1.0
            return space.but(
                grid=grid, summable=False, quantized=quantized_block_error(bits, block, share),
                l2=space.l2 * growth, linf=space.linf * SLACK,
            )  # fmt: skip
        if space.linf == inf:
            raise CompositionError(
                "E-NO-BOUND",
                f"{name}: a grid shared by all devices needs a bound on each coordinate.",
                "put clamp or clip before it.",
            )
        step = space.linf / top
        l2 = step * sqrt(space.dim) if bits == 1 else shared_grid_l2(space.l2, step, space.dim, top)
        return space.but(grid=replace(grid, scale=step, block=0), l2=l2, keeps_zero=space.keeps_zero and bits > 1)

    def rounded(x: NDArray[np.float32], inverse: NDArray[np.float64], block: int, turn: Turn) -> NDArray[Any]:
        body: NDArray[Any] = np.empty(x.size, np.int8 if top <= 127 else np.int32)
        seed = np.uint64(word(turn.own("quantize", turn.round)))
        if bits == 1:
            flip_coins(x, inverse, block, seed, body)
        else:
            round_levels(x, inverse, block, top, seed, body)
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
        seed = np.uint64(word(turn.own("quantize", turn.round)))
        return payload.but(scales=round_blocks(x, block, top, seed, body), body=body), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        if shared:
            step = np.array([space.linf / top])
            return payload.but(body=unround(payload.body, step, max(1, payload.body.size)))
        assert payload.scales is not None
        return payload.but(body=unround(payload.body, payload.scales.astype(np.float64) / top, block), scales=None)

    return Stage(name, infer, encode, decode, quantizer_words, pointwise=True)
