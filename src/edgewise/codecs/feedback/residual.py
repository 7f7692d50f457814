"""Residual of error feedback: its storage in few bytes, and its sum with an update without a full copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import TrainingError
from edgewise.core.keys import Key, derive, word
from edgewise.core.memory import Memory
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Array, Vector
from edgewise.kernels.magnitudes import add_bfloat16, add_float32
from edgewise.kernels.rounding import to_bfloat16, to_int8

TYPES = {"bfloat16": np.uint16, "int8": np.int8, "float32": np.float32}  # numpy type of the stored values
BLOCK = 256  # coordinates that share a float32 scale (int8)
PART = 1 << 15  # coordinates at a time, a multiple of BLOCK and of the kernels' runs
_LARGEST = 0x7F7FFFFF  # bits of the largest finite float32


def zero_residual(kind: str, dim: int) -> dict[str, Array]:
    """Make a residual of zeros.

    Returns:
        ``residual`` uint16, int8 or float32 of ``dim``. int8 also has ``residual_scale`` float32.
    """
    memory: dict[str, Array] = {"residual": np.zeros(dim, TYPES[kind])}
    if kind == "int8":
        memory["residual_scale"] = np.zeros(-(-dim // BLOCK), np.float32)
    return memory


def store_residual(kind: str, dim: int, part: Callable[[int, int], Vector], key: Key) -> dict[str, Array]:
    """Store a residual that ``part(start, stop)`` computes piece by piece.

    bfloat16 (8 bits of mantissa) and int8 round at random without bias. Rounding to nearest would lose an update below
    2^-9 of the residual every round, and residuals under strong sparsification are hundreds of times as large as
    updates. The error of one rounding is at most 2^-7 of the coordinate, or 1/127 of the block's largest. float32 is
    exact. The rounding of coordinate i depends on i and ``key`` only.
    """
    memory = zero_residual(kind, dim)
    stored = memory["residual"]
    for a in range(0, dim, PART):
        b = min(dim, a + PART)
        seed = np.uint64(word(derive(key, a)))
        if kind == "bfloat16":
            to_bfloat16(part(a, b), seed, stored[a:b])
        elif kind == "int8":
            to_int8(part(a, b), BLOCK, seed, stored[a:b], memory["residual_scale"][a // BLOCK : -(-b // BLOCK)])
        else:
            stored[a:b] = part(a, b)
    return memory


@dataclass(frozen=True)
class WithResidual:
    """The sum ``x + factor * residual``, computed when it is read. It always has the same bits.

    Raises TrainingError(E-RANGE) when coordinates are read that overflow float32.
    """

    name: str
    x: Vector
    memory: Memory
    factor: np.float32

    __repr__ = outline

    def read(self, start: int, stop: int) -> Vector:
        """Compute coordinates start to stop, in a new float32 array."""
        out = np.empty(stop - start, np.float32)
        self._mix_into(out, start, stop)
        return out

    def whole(self) -> Vector:
        """Compute all coordinates."""
        out = np.empty(self.x.size, np.float32)
        for a in range(0, out.size, PART):
            b = min(out.size, a + PART)
            self._mix_into(out[a:b], a, b)
        return out

    def at(self, where: NDArray[np.int64]) -> Vector:
        """Compute the coordinates at some positions."""
        x, stored = self.x[where], self.memory["residual"][where]
        out = np.empty(where.size, np.float32)
        if stored.dtype == np.int8:
            add_float32(x, _residual_levels(stored, self.memory["residual_scale"][where // BLOCK]), self.factor, out)
        else:
            (add_bfloat16 if stored.dtype == np.uint16 else add_float32)(x, stored, self.factor, out)
        return out

    def _mix_into(self, out: Vector, start: int, stop: int) -> None:
        """Write update plus residual of these coordinates to ``out``. Raises TrainingError where they overflow."""
        x, stored = np.ascontiguousarray(self.x[start:stop]), self.memory["residual"][start:stop]
        if stored.dtype == np.uint16:
            peak = add_bfloat16(x, stored, self.factor, out)
        else:
            if stored.dtype == np.int8:
                first = start // BLOCK * BLOCK
                scales = self.memory["residual_scale"][start // BLOCK : -(-stop // BLOCK)]
                stored = _residual_levels(stored, np.repeat(scales, BLOCK)[start - first : stop - first])
            peak = add_float32(x, stored, self.factor, out)
        if peak > _LARGEST:
            raise TrainingError("E-RANGE", f"{self.name}: update and residual overflow float32.", "lower training.lr.")


def _residual_levels(stored: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decode a stored residual of eight bits."""
    value: NDArray[np.float32] = (stored * (scales.astype(np.float64) / 127.0)).astype(np.float32)
    return value
