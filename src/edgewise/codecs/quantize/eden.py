"""EDEN quantization of rotated vectors: normal centroids, and a scale that makes the decoded vector unbiased."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.project.rotate import SHORTEST, rotation_block_edges
from edgewise.codecs.quantize import scales
from edgewise.codecs.quantize.codebook import codebook_space, codebook_values
from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, word
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector

# Positive halves of the Lloyd-Max code books of N(0, 1). Each value is the mean of its cell, and each limit between two
# cells lies halfway (Max 1960). A test checks both conditions.
CENTROIDS = {
    1: np.array([0.7978845608028654]),
    2: np.array([0.45278003463649213, 1.510417608499096]),
    3: np.array([0.24509417894422184, 0.7560052812058781, 1.3439092785050006, 2.1519457045369874]),
    4: np.array(
        [
            0.1283950298511473,
            0.3880482994902915,
            0.656759118532465,
            0.9423404564869629,
            1.2562311973471776,
            1.618046386021882,
            2.069017226531385,
            2.732589570995161,
        ]
    ),
}
NMSE = {1: np.pi / 2 - 1, 2: 0.1331, 3: 0.0358, 4: 0.0096}  # of normal blocks
LONGEST = 2.0  # Largest length of a decoded block, in lengths of the block. One bit needs 1.26.
_CHUNK = 128  # Partial sums: enough for any vector unit, few enough to stay in registers and L1.


@compiled
def _squared_norm(x: NDArray[np.float32]) -> float:
    """Add up squares in an order that does not depend on the processor."""
    sums = np.zeros(_CHUNK, np.float64)
    for at in range(0, x.size, _CHUNK):
        part = x[at : at + _CHUNK]
        for i in range(part.size):
            sums[i] += np.float64(part[i]) * np.float64(part[i])
    total = 0.0
    for v in sums:
        total += v
    return total


@compiled
def _nearest_centroids(
    x: NDArray[np.float32],
    limits: NDArray[np.float32],
    first: np.float32,
    steps: NDArray[np.float32],
    out: NDArray[np.int8],
) -> tuple[float, float]:
    """Compute the levels of the nearest centroids, <Q, x> and ||Q||^2, with Q in units of the standard deviation."""
    inner, square, q = np.zeros(_CHUNK), np.zeros(_CHUNK), np.empty(_CHUNK, np.float32)
    for at in range(0, x.size, _CHUNK):
        part, o = x[at : at + _CHUNK], out[at : at + _CHUNK]
        n = part.size
        for i in range(n):
            q[i] = first
            o[i] = 1
        for j in range(limits.size):
            limit, step = limits[j], steps[j]
            for i in range(n):
                above = abs(part[i]) > limit
                o[i] += np.int8(2) if above else np.int8(0)
                q[i] += step if above else np.float32(0.0)
        for i in range(n):
            inner[i] += np.float64(abs(part[i])) * np.float64(q[i])
            square[i] += np.float64(q[i]) * np.float64(q[i])
            o[i] = o[i] if part[i] >= np.float32(0.0) else -o[i]
    dot, length = 0.0, 0.0
    for i in range(_CHUNK):
        dot += inner[i]
        length += square[i]
    return dot, length


@compiled
def _encode_blocks(
    x: NDArray[np.float32],
    ends: NDArray[np.int64],
    centroids: NDArray[np.float64],
    out: NDArray[np.int8],
    scale: NDArray[np.float64],
    largest: NDArray[np.float64],
) -> None:
    """Encode each rotation block: levels, the unbiased scale ||x||^2 / <Q, x>, and the largest scale allowed."""
    limits = (centroids[1:] + centroids[:-1]) / 2
    steps = (centroids[1:] - centroids[:-1]).astype(np.float32)
    for b in range(scale.size):
        part, o = x[ends[b] : ends[b + 1]], out[ends[b] : ends[b + 1]]
        square = _squared_norm(part)
        deviation = np.sqrt(square / part.size)
        dot, length = _nearest_centroids(
            part, (limits * deviation).astype(np.float32), np.float32(centroids[0]), steps, o
        )
        scale[b] = square / dot if dot > 0.0 else 0.0
        largest[b] = LONGEST * (1.0 - 2.0**-20) * np.sqrt(square / length)


def eden(bits: int) -> Stage:
    """Encode each block of a rotation by nearest Lloyd-Max centroids of the normal distribution, decoded to ``S Q(x)``.

    Q uses the block's own standard deviation ||x|| / sqrt(B), and ``S = ||x||^2 / <Q(x), x>``. The decoded vector's
    part along x is then x itself, and the rest averages out over random rotations. S is rounded to bfloat16 at random
    with turn.private, without bias.

    Algebra: unbiased over the rotation if every block has at least 64 coordinates. Not summable (a scale per device).
    l2 -> 2 l2: S is limited so that no decoded block is longer than twice the block (after a rotation it is sqrt(1 +
    NMSE) times as long). linf -> at most 2 c_max / c_min times itself.
    Guarantees: NMSE of normal blocks pi/2 - 1, .1331, .0358, .0096 for 1 to 4 bits. A Hadamard rotation is not uniform.
    If few coordinates hold most of a block's length, their rotated shape is too regular and the rest is shrunk.
    Measured with 1 bit, squared bias over squared length (without the expected value of the part that averages to
    zero): below .0005 for normal and Student t(1.5) blocks from 64 coordinates on, .025 if one coordinate is as long as
    all others together, .13 if it is twice as long.
    Edge cases: zero blocks stay zero. A rest that the rotation joined to its last whole block shares that block's scale
    and carries a copy of it.
    Args:
        bits: 1 to 4.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL. E-ORDER unless the body is a whole rotated vector.
    Source: Vargaftik et al. 2021 (DRIVE), arXiv:2105.08339, theorem 1 and section 4 (one bit). Vargaftik et al. 2022
    (EDEN), arXiv:2108.08842, section 3. Max 1960 (centroids).
    """
    name = f"quantize({bits}, eden)"
    require.between("quantize: bits on the eden grid", bits, 1, 4)
    centroids = CENTROIDS[bits]
    code = np.concatenate([-centroids[::-1], centroids])
    ratio = LONGEST * float(centroids[-1] / centroids[0])

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse or space.rotation is None or space.dim != space.rotation.dim:
            fix = "put rotate before it, and random_k or shared_top_k before rotate."
            if space.sparse:
                fix = 'use grid = "pair" after top_k, or random_k or shared_top_k before rotate.'
            what = "its values fit coordinates that a rotation has made alike, block by block"
            raise CompositionError("E-ORDER", f"{name}: {what}{', so it cannot follow top_k' * space.sparse}.", fix)
        shortest = int(np.diff(rotation_block_edges(space.dim, space.rotated)).min(initial=SHORTEST))
        return codebook_space(space, bits, space.rotated, NMSE[bits]).but(
            unbiased=space.unbiased and shortest >= SHORTEST,
            l2=space.l2 * LONGEST,
            linf=min(space.l2 * LONGEST, space.linf * ratio),
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        x: Vector = payload.body
        ends = rotation_block_edges(x.size, space.rotated)
        levels, scale, largest = np.empty(x.size, np.int8), np.zeros(ends.size - 1), np.zeros(ends.size - 1)
        _encode_blocks(x, ends, centroids, levels, scale, largest)
        seed = np.uint64(word(turn.own("quantize", turn.round)))
        step = np.minimum(scales.scales_rounded_randomly(scale, seed), scales.scales_rounded_down(largest))
        slots = -(-x.size // space.rotated)
        return payload.but(body=levels, scales=np.append(step, step[-1:].repeat(slots - step.size))), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        assert payload.scales is not None
        return payload.but(body=codebook_values(payload.body, code, payload.scales, space.rotated), scales=None)

    return Stage(name, infer, encode, decode, scales.quantizer_words)
