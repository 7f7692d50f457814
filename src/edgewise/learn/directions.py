"""Seeded random directions z_k in {-1, +1}^D, generated on use and never stored.

    seeds = direction_seeds(key, 4096)
    w = expand_directions(base, coefficients, seeds)        # base + sum_k a_k z_k

Entry i of z_k is +1 where bit (i mod 64) of word (i div 64) of the SplitMix64 stream ``seeds[k]`` is set, else -1.
Each entry takes one IEEE float32 product (exact, by +-1) and one sum for each k, in the order of k. Equal arguments
therefore give equal bits on every platform.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled
from edgewise.core.keys import Key, derive, word
from edgewise.core.vector import Vector
from edgewise.kernels.hashing import hash_word

Seeds = NDArray[np.uint64]
# So many coordinates stay in the first-level cache while all directions pass over them. It is a multiple of 64.
BLOCK = 2048
_ONE, _LOW, _HALF = np.uint32(1), np.uint64(0xFFFFFFFF), np.uint64(32)


def direction_seeds(key: Key, count: int) -> Seeds:
    """Derive a seed for each direction from the run's key: uint64[count]."""
    return np.array([word(derive(key, "direction", k)) for k in range(count)], np.uint64)


def expand_directions(base: Vector, a: Vector, seeds: Seeds) -> Vector:
    """Compute base + sum_k a_k z_k as a new float32[D].

    Args:
        base: float32[D].
        a: float32[K], the coefficients.
        seeds: uint64[K].
    Guarantees:
        Equal arguments give equal bits. The sum starts at zero, runs over ascending k, and skips a_k = 0. ``base`` is
        added last, so that small terms do not lose their low bits to it.
    """
    out = np.zeros_like(base)
    add_directions(out, np.ascontiguousarray(a, np.float32), seeds)
    out += base
    return out


def move_along_direction(w: Vector, step: float, seed: np.uint64) -> None:
    """Add step z to w in place. ``step`` is rounded to float32 first."""
    add_directions(w, np.array([step], np.float32), np.array([seed], np.uint64))


@compiled
def add_directions(w: Vector, a: Vector, seeds: Seeds) -> None:
    """Add sum_k a_k z_k to w in place, with k ascending for each coordinate."""
    words = np.empty(BLOCK // 32, np.uint32)
    for start in range(0, w.size, BLOCK):
        block = w[start : start + BLOCK]
        for k in range(a.size):
            c = a[k]
            if c == 0.0:
                continue
            for j in range((block.size + 63) // 64):
                both = hash_word(seeds[k], start // 64 + j)
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
    """Return +1 or -1 by bit i. Compilers vectorise a product by it, but not a choice between c and -c."""
    return np.float32(np.int32((bits >> np.uint32(i)) & _ONE) * np.int32(2) - np.int32(1))
