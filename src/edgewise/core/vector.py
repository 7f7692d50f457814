"""An update is one flat float32 vector plus a ``Spec``: named segments, one norm, one shape check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import DecodeError

Array = NDArray[Any]
Vector = NDArray[np.float32]  # float32[d], C order
Buffer = bytes | memoryview  # a blob, mostly a view of a vector


@dataclass(frozen=True, slots=True)
class Segment:
    """A named slice of the vector: ``x[start : start + size].reshape(shape)``.

    ``dtype`` is what the tensor has in its model (``"float32"``, ``"bfloat16"``); in the vector it is always float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def size(self) -> int:
        """Number of coordinates; a scalar (empty shape) has one."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """First coordinate after the segment."""
        return self.start + self.size


@dataclass(frozen=True)
class Spec:
    """The layout of an update: contiguous segments in order, starting at 0."""

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        at = 0
        for s in self.segments:
            if s.start != at:
                raise ValueError(f"segment {s.name} starts at {s.start}, expected {at}")
            at = s.stop
        if len({s.name for s in self.segments}) != len(self.segments):
            raise ValueError("segment names must be unique")

    @staticmethod
    def of(shapes: Sequence[tuple[str, Sequence[int], str]]) -> Spec:
        """Lay out ``(name, shape, dtype)`` triples one after the other."""
        segments, at = [], 0
        for name, shape, dtype in shapes:
            s = Segment(name, tuple(int(n) for n in shape), dtype, at)
            segments.append(s)
            at = s.stop
        return Spec(tuple(segments))

    @cached_property
    def dim(self) -> int:
        """Length of the vector."""
        return self.segments[-1].stop if self.segments else 0

    def to_list(self) -> list[list[Any]]:
        """Plain ``[name, shape, dtype]`` lists, the form that travels and is hashed."""
        return [[s.name, list(s.shape), s.dtype] for s in self.segments]

    def written(self) -> bytes:
        """The layout as JSON; SHA-256 of these bytes is ``digest``."""
        return json.dumps(self.to_list(), separators=(",", ":")).encode()

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(self.written()).hexdigest()

    def digest(self) -> str:
        """SHA-256 over names, shapes and dtypes, as 64 hex characters. Two sides with equal digests agree on layout."""
        return self._digest


def pack(tensors: Mapping[str, Array], spec: Spec) -> Vector:
    """Concatenate tensors into one vector in the order of ``spec``.

    Args:
        tensors: name -> array; exactly the names of ``spec``, each of its shape, any real dtype.
    Returns:
        float32[spec.dim].
    Raises:
        ValueError: a name is missing or extra, or a shape differs.
    """
    if tensors.keys() != {s.name for s in spec.segments}:
        odd = sorted(tensors.keys() ^ {s.name for s in spec.segments})
        raise ValueError(f"tensors and spec differ in {odd[:5]}")
    x = np.empty(spec.dim, np.float32)
    for s in spec.segments:
        t = np.asarray(tensors[s.name])
        if t.shape != s.shape:
            raise ValueError(f"{s.name} has shape {t.shape}, spec says {s.shape}")
        x[s.start : s.stop] = t.reshape(-1)
    return x


def unpack(x: Vector, spec: Spec) -> dict[str, Array]:
    """Views of ``x`` (float32[spec.dim]), one per segment, in its shape. Raises ValueError on another length."""
    if x.shape != (spec.dim,):
        raise ValueError(f"vector has shape {x.shape}, spec needs ({spec.dim},)")
    return {s.name: x[s.start : s.stop].reshape(s.shape) for s in spec.segments}


def finite(x: Vector) -> bool:
    """Whether no coordinate is NaN or infinite; needs no memory in proportion to x."""
    with np.errstate(over="ignore", invalid="ignore"):
        for part in (x[i : i + 8192] for i in range(0, x.size, 8192)):
            # A sum of squares is the cheapest look at all of them; it may also overflow for finite ones.
            if not np.isfinite(np.dot(part, part)) and not np.isfinite(part).all():
                return False
    return True


def norm_l2(x: Array) -> float:
    """``||x||_2``, added up in float64.

    ``np.linalg.norm`` and ``np.dot`` hand float32 to BLAS, which adds in float32, in an order that its kernel for this
    processor chooses: the figure then differs between processors in the eighth digit.
    Args:
        x: float32 or float64[d], model units.
    Returns:
        The norm, model units.
    Guarantees: with one version of numpy the same bits on every processor; needs 8 MiB of memory at most.
    Edge cases: 0 for an empty vector; NaN or infinite where a coordinate is.
    """
    piece = 1 << 20
    return sqrt(sum(float(np.square(x[i : i + piece], dtype=np.float64).sum()) for i in range(0, x.size, piece)))


def to_bytes(x: Vector) -> memoryview:
    """Raw little-endian float32, ``4 d`` bytes: how model vectors travel and are stored.

    A read-only view of ``x`` without a copy (where the processor is little-endian), so ``x`` must not change any more.
    """
    return np.ascontiguousarray(x, dtype="<f4").view(np.uint8).data.toreadonly()


def from_bytes(raw: Buffer, dim: int) -> Vector:
    """Inverse of ``to_bytes``; read-only view without a copy. Raises DecodeError on another length."""
    if len(raw) != 4 * dim:
        raise DecodeError("E-BLOB", f"a vector of {dim} coordinates needs {4 * dim} bytes, got {len(raw)}.")
    return np.frombuffer(raw, dtype="<f4")


def digest(raw: Buffer) -> str:
    """SHA-256 as 64 hex characters: the address of a blob."""
    return hashlib.sha256(raw).hexdigest()
