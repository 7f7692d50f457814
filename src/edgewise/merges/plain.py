"""Visible sum in fixed point, which does not depend on the order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled
from edgewise.core.errors import DecodeError
from edgewise.core.part import part
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import SLACK, Space, Total
from edgewise.core.stage import Merge

FRACTION_BITS = 40  # One unit of the accumulator is 2^-40, far below the float32 rounding of any update.
CAPACITY_BITS = 62  # Bits of the int64 that are used, so that the sum of n_max contributions cannot overflow.
_UNIT = 2.0**FRACTION_BITS
_RUN = 1024  # Coordinates at a time. They fit the first-level cache.
_SHIFT, _SHIFT_BITS = 1.5 * 2.0**52, 0x4338000000000000
_SMALL = int(np.float32(2.0**10).view(np.int32))  # Values up to here stay below 2^51 when multiplied by 2^40.
_HEAD_UNIT = 1074  # 2^-1074 is the smallest float64. Every float64 is an integer multiple of it.
_HEAD_LIMIT = 2.0**512  # No sum of heads within this limit overflows float64.


class SumTally(NamedTuple):
    """An accumulator.

    Attributes:
        body: int64[d], units of 2^-40, reused in place.
        head: exact sums in units of 2^-1074. None before the first contribution.
        n: number of contributions.
    """

    body: NDArray[Any]
    head: tuple[int, ...] | None
    n: int

    def __repr__(self) -> str:
        return outline(self)


@compiled
def _largest_magnitude(bits: NDArray[np.int32]) -> Any:
    """Find the largest magnitude of float32 values. Values and result are given as bits.

    Bits have the order of the magnitudes. NaN is above infinity.
    """
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & np.int32(0x7FFFFFFF))
    return top


@compiled
def _fold_coordinates(acc: NDArray[np.int64], x: NDArray[np.float32], limit: int, unit: float) -> bool:
    """Add all coordinates, rounded half to even, if none exceeds ``limit``. Otherwise add nothing and return False.

    ``limit`` is the bits of the largest float32 allowed. Adding 1.5 2^52 rounds a number to an integer, which then
    stands in its low bits. This is exact up to 2^51, and it is a vector instruction, unlike float64 to int64.
    """
    top = _largest_magnitude(x.view(np.int32))
    if top > limit:
        return False
    if top > _SMALL:
        for i in range(x.size):
            acc[i] += np.int64(np.rint(np.float64(x[i]) * unit))
        return True
    shifted = np.empty(_RUN, np.float64)
    bits = shifted.view(np.int64)
    for start in range(0, x.size, _RUN):
        now, to = x[start : start + _RUN], acc[start : start + _RUN]
        for i in range(now.size):
            shifted[i] = np.float64(now[i]) * unit + _SHIFT
        for i in range(now.size):
            to[i] += bits[i] - _SHIFT_BITS
    return True


@compiled
def _fold_sparse(
    acc: NDArray[np.int64], support: NDArray[np.int64], x: NDArray[np.float32], limit: int, unit: float
) -> bool:
    """Add values at the positions of ``support``, as ``_fold_coordinates`` does."""
    if _largest_magnitude(x.view(np.int32)) > limit:
        return False
    for i in range(x.size):
        acc[support[i]] += np.int64(np.rint(np.float64(x[i]) * unit))
    return True


@part(name="sum")
def plain_sum() -> Merge:
    """Add contributions that the server sees.

    Each contribution is decoded to float32[d] and added in fixed point, 40 fraction bits in int64. A sparse
    contribution (``Payload.support``) is added at its positions only, in time proportional to its non-zeros. A dense
    one can be added piece by piece while it is decoded. If a piece is refused, the pieces before it are subtracted
    again.

    Guarantees: the sum is exact, hence the same for every order of arrival and every way to shard it. A refused
    contribution leaves the accumulator unchanged. The rounding of each coordinate is at most 2^-41 per contribution.
    The scalars of the head are added exactly.
    Algebra: ``step`` is 2^-40. The result is float64, and ``rounding`` accounts for its 53 bits.
    Limits: |x_i| <= 2^22 / n_max (``most``), so that n_max contributions cannot overflow.
    Raises (add): DecodeError E-PAYLOAD for a value that is not finite, E-RANGE beyond the limit. ValueError (own
    misuse) for a wrong shape or above n_max contributions.
    """

    def infer(space: Space) -> Total:
        # ``Pipeline.add`` accepts vectors that exceed the bound by its slack. float64 keeps 53 bits of the sum.
        more = space.sensitivity * (SLACK + 2.0**-52 * space.quorum.n_max)
        std = sqrt(space.quorum.n_min) * space.noise.std
        return Total(
            space, space.sensitivity, std, visible=True, step=1.0 / _UNIT, rounding=more, most=_coordinate_bound(space)
        )

    def init(space: Space) -> SumTally:
        return SumTally(np.zeros(space.dim, np.int64), None, 0)

    def add(acc: SumTally, payload: Payload, space: Space) -> SumTally:
        _check_shape(acc, payload, space)
        head = _fold_head(acc.head, payload.head)
        limit, body = _bound_bits(space), np.ascontiguousarray(payload.body, np.float32)
        if payload.support is None:
            added = _fold_coordinates(acc.body, body, limit, _UNIT)
        else:
            added = _fold_sparse(acc.body, payload.support, body, limit, _UNIT)
        if not added:
            raise _beyond_bound(body, space)
        return SumTally(acc.body, head, acc.n + 1)

    def stream(acc: SumTally, pieces: Callable[[], Iterator[Payload]], space: Space) -> SumTally:
        _check_room(acc, space)
        head, limit, at, done = acc.head, _bound_bits(space), 0, 0
        try:
            for piece in pieces():
                head = _fold_head(acc.head, piece.head) if at == 0 else head
                if not _fold_coordinates(acc.body[at : at + piece.body.size], piece.body, limit, _UNIT):
                    raise _beyond_bound(piece.body, space)
                at, done = at + piece.body.size, done + 1
        except DecodeError:
            at = 0
            for piece in islice(pieces(), done):  # The sum is exact, so subtraction restores it bit by bit.
                _fold_coordinates(acc.body[at : at + piece.body.size], piece.body, limit, -_UNIT)
                at += piece.body.size
            raise
        return SumTally(acc.body, head, acc.n + 1)

    def finish(acc: SumTally, space: Space, precise: bool = True) -> Payload:
        kind = np.float64 if precise else np.float32
        body, piece = np.empty(acc.body.size, kind), 1 << 16  # Pieces avoid a float64 copy of all coordinates.
        for i in range(0, body.size, piece):
            body[i : i + piece] = acc.body[i : i + piece] * 2.0**-FRACTION_BITS
        return Payload(body, _head_total(acc.head))

    return Merge(
        "plain_sum", False, lambda _: "decodes each contribution, then merges", infer, init, add, finish, stream
    )


def _check_shape(acc: SumTally, payload: Payload, space: Space) -> None:
    """Raise ValueError unless the contribution has the shape of the sum."""
    positions = payload.support
    if positions is None and payload.body.shape != acc.body.shape:
        raise ValueError(f"contribution has shape {payload.body.shape}, the sum has {acc.body.shape}")
    if positions is not None:
        inside = positions.size == 0 or (
            positions[0] >= 0 and positions[-1] < acc.body.size and bool((np.diff(positions) > 0).all())
        )
        if positions.shape != payload.body.shape or not inside:
            raise ValueError(
                f"the {positions.size} positions of a support do not increase inside a sum of {acc.body.size}"
            )
    _check_room(acc, space)


def _check_room(acc: SumTally, space: Space) -> None:
    """Raise ValueError if the sum is full."""
    if acc.n >= space.quorum.n_max:
        raise ValueError(f"the sum holds {acc.n} contributions, its limit")


def _coordinate_bound(space: Space) -> float:
    """Largest magnitude of a coordinate at which a full sum cannot overflow."""
    return 2.0 ** (CAPACITY_BITS - FRACTION_BITS) / space.quorum.n_max


def _bound_bits(space: Space) -> int:
    """Compute the bits of the largest float32 up to the bound."""
    edge = np.float32(_coordinate_bound(space))
    return int(edge.view(np.int32)) - int(float(edge) > _coordinate_bound(space))


def _beyond_bound(body: NDArray[np.float32], space: Space) -> DecodeError:
    """Make the error for a coordinate that no sum takes."""
    if not np.isfinite(body).all():
        return DecodeError("E-PAYLOAD", "a decoded coordinate is not finite.")
    return DecodeError(
        "E-RANGE",
        f"a coordinate of {float(np.abs(body).max()):.3g} is above the limit {_coordinate_bound(space):.6g}.",
        "clip or clamp updates on the device.",
    )


def _fold_head(total: tuple[int, ...] | None, head: NDArray[np.float64]) -> tuple[int, ...]:
    """Add exact scalars to a head. Raises DecodeError for one out of range."""
    values = cast(list[float], head.tolist())
    if not all(abs(v) <= _HEAD_LIMIT for v in values):
        finite = bool(np.isfinite(head).all())
        raise DecodeError("E-RANGE" if finite else "E-PAYLOAD", "a head value is not finite or too large to be summed.")
    exact = []
    for v in values:
        numerator, denominator = v.as_integer_ratio()
        exact.append(numerator << (_HEAD_UNIT + 1 - denominator.bit_length()))
    if total is None:
        return tuple(exact)
    return tuple(a + b for a, b in zip(total, exact, strict=True))


def _head_total(head: tuple[int, ...] | None) -> NDArray[np.float64]:
    """Return the head as floats."""
    return np.array([v / (1 << _HEAD_UNIT) for v in head or ()], np.float64)
