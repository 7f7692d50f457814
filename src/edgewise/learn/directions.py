"""Seeded random directions: z_k in {-1, +1}^D, made where they are used and never stored.

Entry i of z_k is +1 where bit (i mod 64) of word (i div 64) of the SplitMix64 stream ``seeds[k]`` is set, else -1. All
arithmetic is one IEEE float32 product (exact, by +-1) and one sum per entry, in the order of k, so the same arguments
give the same bits on every platform.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.keys import Key, derive, word
from edgewise.core.vector import Vector
from edgewise.kernels.compiled import compiled
from edgewise.kernels.hashing import mix

Seeds = NDArray[np.uint64]
BLOCK = 2048  # coordinates that stay in the first-level cache while all directions pass over them; a multiple of 64
_ONE, _LOW, _HALF = np.uint32(1), np.uint64(0xFFFFFFFF), np.uint64(32)


def seeds_of(key: Key, count: int) -> Seeds:
    """uint64[count]: a seed for each direction, from the run's key."""
    return np.array([word(derive(key, "direction", k)) for k in range(count)], np.uint64)


def expand(base: Vector, a: Vector, seeds: Seeds) -> Vector:
    """base + sum_k a_k z_k, a new float32[D].

    Args:
        base: float32[D]. a: float32[K]. seeds: uint64[K].
    Guarantees:
        The sum starts at zero and runs over ascending k, skipping a_k = 0; ``base`` comes last, so that small sums do
        not lose their low bits to it term by term. Equal arguments, equal bits.
    """
    out = np.zeros_like(base)
    add(out, np.ascontiguousarray(a, np.float32), seeds)
    out += base
    return out


def move(w: Vector, step: float, seed: np.uint64) -> None:
    """w += step z, in place; ``step`` is rounded to float32 first."""
    add(w, np.array([step], np.float32), np.array([seed], np.uint64))


@compiled
def add(w: Vector, a: Vector, seeds: Seeds) -> None:
    """w += sum_k a_k z_k, in place, k ascending for each coordinate."""
    words = np.empty(BLOCK // 32, np.uint32)
    for start in range(0, w.size, BLOCK):
        block = w[start : start + BLOCK]
        for k in range(a.size):
            c = a[k]
            if c == 0.0:
                continue
            for j in range((block.size + 63) // 64):
                both = mix(seeds[k], start // 64 + j)
                words[2 * j], words[2 * j + 1] = np.uint32(both & _LOW), np.uint32(both >> _HALF)
            whole = block.size // 32
            for j in range(whole):
                bits = words[j]
                for i in range(32):
                    block[32 * j + i] += c * _sign(bits, i)
            for i in range(32 * whole, block.size):
                block[i] += c * _sign(words[whole], i - 32 * whole)


@compiled
def _sign(bits: np.uint32, i: int) -> np.float32:
    """+1 or -1 by bit i. A product by it becomes vector instructions; a choice between c and -c does not."""
    return np.float32(np.int32((bits >> np.uint32(i)) & _ONE) * np.int32(2) - np.int32(1))
