"""Compilation of loops with numba that keeps their static type.

Loops use integer arithmetic and IEEE float64 without contraction or reordering, so their bits are the same on every
little-endian platform. Inner loops run over slices from 0 to their size. Only then does the compiler know that no index
is negative, and use vector instructions. Work is done in runs of ``RUN`` coordinates, which stay in the first-level
cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
RUN = 2048  # coordinates at a time: 8 KiB of float32, 8 KiB of random words
MAGNITUDE = np.int32(0x7FFFFFFF)  # Mask for the bits of a float32 without its sign. They have the order of magnitudes.


def compiled(f: F) -> F:
    """Compile with numba in no-Python mode, cached on disk, without the GIL. The type of ``f`` stays visible."""
    return cast(F, njit(cache=True, nogil=True)(f))
