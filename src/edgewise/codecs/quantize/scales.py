"""Scales of blocks as bfloat16, the upper half of a float32: rounded up, down, or at random without bias."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.space import Space
from edgewise.kernels.hashing import hashed_uniform

SLACK = 1.0 + 2.0**-7  # Largest factor by which rounding up enlarges a scale.
SMALLEST = np.float32(2.0**-126)  # Smaller scales (float32 denormals) become zero.
LARGEST = np.float32(2.0**127 * (2.0 - 2.0**-7))  # the largest finite bfloat16
_HIGH, _LOW = np.uint32(0xFFFF0000), np.uint32(0xFFFF)

Scales = NDArray[np.float32]


def scales_rounded_up(values: NDArray[np.float32]) -> Scales:
    """Round non-negative float32[n] to the next bfloat16 at or above, at most LARGEST."""
    up = ((np.minimum(values, LARGEST).view(np.uint32) + _LOW) & _HIGH).view(np.float32)
    return np.where(values < SMALLEST, np.float32(0.0), up)


def block_scales(x: NDArray[np.float32], block: int) -> Scales:
    """Compute the largest magnitude of each block of ``block`` coordinates, rounded up.

    The last block may be shorter.
    """
    return scales_rounded_up(np.maximum.reduceat(np.abs(x), np.arange(0, x.size, block)) if x.size else x)


def scales_rounded_down(values: NDArray[np.float64]) -> Scales:
    """Round non-negative float64[n] to the next bfloat16 at or below."""
    x = np.minimum(values, np.float64(LARGEST)).astype(np.float32)
    x = np.where(x > values, np.nextafter(x, np.float32(0.0)), x)
    return np.where(x < SMALLEST, np.float32(0.0), (x.view(np.uint32) & _HIGH).view(np.float32))


def scales_rounded_randomly(values: NDArray[np.float64], seed: np.uint64) -> Scales:
    """Round non-negative float64[n] to the bfloat16 below or above, with the value as mean (to float32 precision)."""
    x = np.minimum(values, np.float64(LARGEST)).astype(np.float32)
    coins = np.array([int(65536.0 * hashed_uniform(seed, i)) for i in range(x.size)], np.uint32)
    up = (np.minimum(x.view(np.uint32) + coins, LARGEST.view(np.uint32)) & _HIGH).view(np.float32)
    return np.where(x < SMALLEST, np.float32(0.0), up)


def quantizer_words(before: Space, after: Space) -> str:
    """Describe a quantizer, for ``Stage.says``."""
    many = "one scale" if after.grid.scales == 1 else f"{after.grid.scales} scales"
    grid = f"{many} per {after.grid.block} coordinates" if after.grid.block else "one public grid"
    return f"rounds to {after.grid.bits:g}-bit integers, {grid}"
