"""Find the largest magnitude of float32 vectors, collect large coordinates, and add two vectors on the way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.kernels.compiled import MAGNITUDE, compiled


@compiled
def peak(bits: NDArray[np.int32]) -> np.int32:
    """Largest magnitude of float32 values given as their bits, as bits too; above 0x7F7FFFFF: not all are finite."""
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & MAGNITUDE)
    return top


@compiled
def gather(
    bits: NDArray[np.int32],
    first: int,
    floor: int,
    where: NDArray[np.int64],
    size: NDArray[np.int32],
    have: int,
) -> tuple[int, int]:
    """Append magnitudes of at least ``floor`` (bits of float32) to ``size`` and their positions, counted from
    ``first``, to ``where``, which hold ``have``; stops before the one that no longer fits.

    Returns coordinates read, and how many are held now. Most groups of 32 have none, which a vector loop finds.
    """
    for start in range(0, bits.size, 32):
        group = bits[start : start + 32]
        if peak(group) >= floor:
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
    """out = x + f e in float32, e given as the upper halves of float32; returns ``peak`` of it."""
    bits = out.view(np.int32)
    for i in range(e.size):
        bits[i] = np.int32(np.uint32(e[i]) << np.uint32(16))
    for i in range(x.size):
        out[i] = x[i] + f * out[i]
    return peak(bits)


@compiled
def add_float32(x: NDArray[np.float32], e: NDArray[np.float32], f: np.float32, out: NDArray[np.float32]) -> np.int32:
    """out = x + f e; returns ``peak`` of it."""
    for i in range(x.size):
        out[i] = x[i] + f * e[i]
    return peak(out.view(np.int32))
