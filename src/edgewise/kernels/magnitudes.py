"""Loops that find the largest magnitude of float32 vectors, collect large coordinates, and add two vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled

MAGNITUDE = np.int32(0x7FFFFFFF)  # Mask for the bits of a float32 without its sign. They have the order of magnitudes.


@compiled
def largest_magnitude(bits: NDArray[np.int32]) -> np.int32:
    """Find the largest magnitude of float32 values. Values and result are given as their bits.

    A result above 0x7F7FFFFF means that not all values are finite.
    """
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & MAGNITUDE)
    return top


@compiled
def gather_magnitudes(
    bits: NDArray[np.int32],
    first: int,
    floor: int,
    where: NDArray[np.int64],
    size: NDArray[np.int32],
    have: int,
) -> tuple[int, int]:
    """Append magnitudes of at least ``floor`` (bits of float32) to ``size``, and their positions to ``where``.

    Positions are counted from ``first``. ``where`` and ``size`` already hold ``have`` entries. The loop stops before
    the first entry that does not fit. Most groups of 32 coordinates have no such magnitude, which a vector loop finds
    quickly.

    Returns:
        The number of coordinates read, and the number of entries after that.
    """
    for start in range(0, bits.size, 32):
        group = bits[start : start + 32]
        if largest_magnitude(group) >= floor:
            for i in range(group.size):
                m = group[i] & MAGNITUDE
                if m >= floor:
                    if have == where.size:
                        return start + i, have
                    where[have], size[have] = first + start + i, m
                    have += 1
    return bits.size, have


@compiled
def add_bfloat16(x: NDArray[np.float32], e: NDArray[np.uint16], f: np.float32, out: NDArray[np.float32]) -> np.int32:
    """Compute out = x + f e in float32, with e given as the upper halves of float32. Return ``peak`` of the result."""
    bits = out.view(np.int32)
    for i in range(e.size):
        bits[i] = np.int32(np.uint32(e[i]) << np.uint32(16))
    for i in range(x.size):
        out[i] = x[i] + f * out[i]
    return largest_magnitude(bits)


@compiled
def add_float32(x: NDArray[np.float32], e: NDArray[np.float32], f: np.float32, out: NDArray[np.float32]) -> np.int32:
    """Compute out = x + f e. Return ``peak`` of the result."""
    for i in range(x.size):
        out[i] = x[i] + f * e[i]
    return largest_magnitude(out.view(np.int32))
