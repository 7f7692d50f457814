"""What error feedback keeps per coordinate, in few bytes, and its sum with an update without a full copy of it."""

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

TYPES = {"bfloat16": np.uint16, "int8": np.int8, "float32": np.float32}  # as which each is stored
BLOCK = 256  # coordinates that share a float32 scale (int8)
PART = 1 << 15  # coordinates at a time, a multiple of BLOCK and of the kernels' runs
_LARGEST = 0x7F7FFFFF  # bits of the largest finite float32


def start(kind: str, dim: int) -> dict[str, Array]:
    """A residual of zeros: ``residual`` uint16, int8 or float32 of ``dim``; int8 also ``residual_scale`` float32."""
    memory: dict[str, Array] = {"residual": np.zeros(dim, TYPES[kind])}
    if kind == "int8":
        memory["residual_scale"] = np.zeros(-(-dim // BLOCK), np.float32)
    return memory


def store(kind: str, dim: int, part: Callable[[int, int], Vector], key: Key) -> dict[str, Array]:
    """The memory of a residual that ``part(start, stop)`` gives piece by piece.

    bfloat16 (8 bits of mantissa) and int8 round at random without bias: to nearest, an update below 2^-9 of the
    residual would be lost every round, and residuals under strong sparsification are hundreds of updates large. What
    is left of one rounding is at most 2^-7 of the coordinate, or 1/127 of the block's largest. float32 is exact.
    The rounding of coordinate i depends on i and ``key`` only.
    """
    memory = start(kind, dim)
    kept = memory["residual"]
    for a in range(0, dim, PART):
        b = min(dim, a + PART)
        seed = np.uint64(word(derive(key, a)))
        if kind == "bfloat16":
            to_bfloat16(part(a, b), seed, kept[a:b])
        elif kind == "int8":
            to_int8(part(a, b), BLOCK, seed, kept[a:b], memory["residual_scale"][a // BLOCK : -(-b // BLOCK)])
        else:
            kept[a:b] = part(a, b)
    return memory


@dataclass(frozen=True)
class Mixed:
    """``x + factor * residual``, computed where it is read; always the same bits.

    Raises TrainingError(E-RANGE) when read where it overflows float32.
    """

    name: str
    x: Vector
    memory: Memory
    factor: np.float32

    __repr__ = outline

    def read(self, start: int, stop: int) -> Vector:
        """Coordinates start to stop, in a new float32 array."""
        out = np.empty(stop - start, np.float32)
        self._into(out, start, stop)
        return out

    def whole(self) -> Vector:
        """All coordinates."""
        out = np.empty(self.x.size, np.float32)
        for a in range(0, out.size, PART):
            b = min(out.size, a + PART)
            self._into(out[a:b], a, b)
        return out

    def at(self, where: NDArray[np.int64]) -> Vector:
        """The coordinates at some positions."""
        x, kept = self.x[where], self.memory["residual"][where]
        out = np.empty(where.size, np.float32)
        if kept.dtype == np.int8:
            add_float32(x, _levels(kept, self.memory["residual_scale"][where // BLOCK]), self.factor, out)
        else:
            (add_bfloat16 if kept.dtype == np.uint16 else add_float32)(x, kept, self.factor, out)
        return out

    def _into(self, out: Vector, start: int, stop: int) -> None:
        x, kept = np.ascontiguousarray(self.x[start:stop]), self.memory["residual"][start:stop]
        if kept.dtype == np.uint16:
            peak = add_bfloat16(x, kept, self.factor, out)
        else:
            if kept.dtype == np.int8:
                first = start // BLOCK * BLOCK
                scales = self.memory["residual_scale"][start // BLOCK : -(-stop // BLOCK)]
                kept = _levels(kept, np.repeat(scales, BLOCK)[start - first : stop - first])
            peak = add_float32(x, kept, self.factor, out)
        if peak > _LARGEST:
            raise TrainingError("E-RANGE", f"{self.name}: update and residual overflow float32.", "lower training.lr.")


def _levels(kept: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    value: NDArray[np.float32] = (kept * (scales.astype(np.float64) / 127.0)).astype(np.float32)
    return value
