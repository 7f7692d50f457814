"""Updates as flat float32 vectors, with a ``Spec`` that names their segments.

>>> import numpy as np
>>> spec = Spec.of([("w", (2, 2), "float32"), ("b", (2,), "float32")])
>>> x = pack({"w": np.ones((2, 2)), "b": np.zeros(2)}, spec)
>>> x.shape, unpack(x, spec)["w"].shape
((6,), (2, 2))
"""

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
Buffer = bytes | memoryview  # A blob. It mostly is a view of a vector.


@dataclass(frozen=True, slots=True)
class Segment:
    """A named slice of the vector: ``x[start : start + size].reshape(shape)``.

    ``dtype`` is the type of the tensor in its model (``"float32"``, ``"bfloat16"``). In the vector it is always
    float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: int

    @property
    def size(self) -> int:
        """Number of coordinates. A scalar (empty shape) has one."""
        return prod(self.shape)

    @property
    def stop(self) -> int:
        """First coordinate after the segment."""
        return self.start + self.size


@dataclass(frozen=True)
class Spec:
    """The layout of an update: contiguous segments in order, starting at 0.

    Raises:
        ValueError: a segment does not start where the one before it ends, or two have the same name.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        start = 0
        for s in self.segments:
            if s.start != start:
                raise ValueError(f"segment {s.name} starts at {s.start}, expected {start}")
            start = s.stop
        if len({s.name for s in self.segments}) != len(self.segments):
            raise ValueError("segment names must be unique")

    @staticmethod
    def of(shapes: Sequence[tuple[str, Sequence[int], str]]) -> Spec:
        """Lay out ``(name, shape, dtype)`` triples one after the other."""
        segments, start = [], 0
        for name, shape, dtype in shapes:
            s = Segment(name, tuple(int(n) for n in shape), dtype, start)
            segments.append(s)
            start = s.stop
        return Spec(tuple(segments))

    @cached_property
    def dim(self) -> int:
        """Length of the vector."""
        return self.segments[-1].stop if self.segments else 0

    def to_list(self) -> list[list[Any]]:
        """List the segments as plain ``[name, shape, dtype]``, the form that travels and is hashed."""
        return [[s.name, list(s.shape), s.dtype] for s in self.segments]

    def written(self) -> bytes:
        """Write the layout as JSON. SHA-256 of these bytes is ``digest``."""
        return json.dumps(self.to_list(), separators=(",", ":")).encode()

    @cached_property
    def _spec_digest(self) -> str:
        """SHA-256 of the written layout."""
        return hashlib.sha256(self.written()).hexdigest()

    def digest(self) -> str:
        """SHA-256 over names, shapes and dtypes, as 64 hex characters.

        Two sides with equal digests have the same layout.
        """
        return self._spec_digest


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
        difference = sorted(tensors.keys() ^ {s.name for s in spec.segments})
        raise ValueError(f"tensors and spec differ in {difference[:5]}")
    x = np.empty(spec.dim, np.float32)
    for s in spec.segments:
        t = np.asarray(tensors[s.name])
        if t.shape != s.shape:
            raise ValueError(f"{s.name} has shape {t.shape}, spec says {s.shape}")
        x[s.start : s.stop] = t.reshape(-1)
    return x


def unpack(x: Vector, spec: Spec) -> dict[str, Array]:
    """Split a vector into its tensors.

    Args:
        x: float32[spec.dim].
    Returns:
        One view of ``x`` per segment, in the segment's shape.
    Raises:
        ValueError: ``x`` has another length.
    """
    if x.shape != (spec.dim,):
        raise ValueError(f"vector has shape {x.shape}, spec needs ({spec.dim},)")
    return {s.name: x[s.start : s.stop].reshape(s.shape) for s in spec.segments}


def finite(x: Vector) -> bool:
    """Return True if no coordinate is NaN or infinite. The memory needed does not grow with x."""
    with np.errstate(over="ignore", invalid="ignore"):
        for part in (x[i : i + 8192] for i in range(0, x.size, 8192)):
            # A sum of squares is the cheapest test of all coordinates. It may overflow for finite ones too.
            if not np.isfinite(np.dot(part, part)) and not np.isfinite(part).all():
                return False
    return True


def norm_l2(x: Array) -> float:
    """Compute ``||x||_2`` with sums in float64.

    ``np.linalg.norm`` and ``np.dot`` hand float32 to BLAS. BLAS adds in float32, in an order that depends on the
    processor. The eighth digit of the result then differs between processors.

    Args:
        x: float32 or float64[d], model units.
    Returns:
        The norm, model units.
    Guarantees: one version of numpy gives the same bits on every processor. Needs 8 MiB of memory at most.
    Edge cases: an empty vector gives 0. A NaN or infinite coordinate gives NaN or infinity.
    """
    piece = 1 << 20
    return sqrt(sum(float(np.square(x[i : i + piece], dtype=np.float64).sum()) for i in range(0, x.size, piece)))


def to_bytes(x: Vector) -> memoryview:
    """View a vector as raw little-endian float32, ``4 d`` bytes. Model vectors travel and are stored in this form.

    On a little-endian processor the result is a read-only view of ``x`` without a copy. ``x`` must not change any more.
    """
    return np.ascontiguousarray(x, dtype="<f4").view(np.uint8).data.toreadonly()


def from_bytes(raw: Buffer, dim: int) -> Vector:
    """View raw bytes as a vector. Inverse of ``to_bytes``, read-only and without a copy.

    Raises:
        DecodeError: E-BLOB for any length but ``4 dim`` bytes.
    """
    if len(raw) != 4 * dim:
        raise DecodeError("E-BLOB", f"a vector of {dim} coordinates needs {4 * dim} bytes, got {len(raw)}.")
    return np.frombuffer(raw, dtype="<f4")


def digest(raw: Buffer) -> str:
    """SHA-256 as 64 hex characters, which is the address of a blob."""
    return hashlib.sha256(raw).hexdigest()
