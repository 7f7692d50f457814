"""A visible sum in fixed point, which does not depend on the order of arrival."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from math import sqrt
from typing import Any, NamedTuple, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgewise.core.errors import DecodeError
from edgewise.core.part import part
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import SLACK, Space, Total
from edgewise.core.stage import Merge

FRACTION_BITS = 40  # one unit of the accumulator is 2^-40, far below float32 noise of any update
CAPACITY_BITS = 62  # of int64, so that the sum of n_max contributions cannot overflow
_UNIT = 2.0**FRACTION_BITS
_RUN = 1024  # coordinates at a time, in the first-level cache
_SHIFT, _SHIFT_BITS = 1.5 * 2.0**52, 0x4338000000000000
_SMALL = int(np.float32(2.0**10).view(np.int32))  # times 2^40 still below 2^51
_HEAD_UNIT = 1074  # 2^-1074 is the smallest float64: every float64 is an integer multiple of it
_HEAD_LIMIT = 2.0**512  # so that no sum of heads overflows float64


class Tally(NamedTuple):
    """An accumulator: ``body`` is reused in place; ``head`` holds exact sums in units of 2^-1074; ``n`` was added."""

    body: NDArray[Any]
    head: tuple[int, ...] | None
    n: int

    def __repr__(self) -> str:
        return outline(self)


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _peak(bits: NDArray[np.int32]) -> Any:
    """Largest magnitude of float32 values given as bits, as bits: ordered as the magnitudes, NaN above infinity."""
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & np.int32(0x7FFFFFFF))
    return top


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fold(acc: NDArray[np.int64], x: NDArray[np.float32], limit: int, unit: float) -> bool:
    """Check all coordinates, then add all, rounded half to even; False (and nothing added) if one fails.

    ``limit`` is the bits of the largest float32 allowed. A sum with 1.5 2^52 is rounded to an integer, which then
    stands in its low bits: exact up to 2^51, and a vector instruction where float64 to int64 is none.
    """
    top = _peak(x.view(np.int32))
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


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _fold_sparse(
    acc: NDArray[np.int64], support: NDArray[np.int64], x: NDArray[np.float32], limit: int, unit: float
) -> bool:
    """As ``_fold`` at the positions of ``support``."""
    if _peak(x.view(np.int32)) > limit:
        return False
    for i in range(x.size):
        acc[support[i]] += np.int64(np.rint(np.float64(x[i]) * unit))
    return True


@part(name="sum")
def plain_sum() -> Merge:
    """Add contributions that the server sees.

    Each is decoded to float32[d] and added in fixed point, 40 fraction bits in int64.
    A contribution that is sparse (``Payload.support``) is added at its positions only: time by its non-zeros. A dense
    one can be added while it is decoded, piece by piece; if a piece is refused, those before it are subtracted again.
    Guarantees: the sum is exact, hence the same for every order of arrival and every way to shard it; a refused
    contribution leaves the accumulator unchanged; each coordinate's rounding is at most 2^-41 per contribution. The
    head's scalars are added exactly.
    Algebra: ``step`` 2^-40. The sum leaves as float64, and ``rounding`` is of its 53 bits.
    Limits: |x_i| <= 2^22 / n_max (``most``), so that n_max contributions cannot overflow.
    Raises (add): DecodeError E-PAYLOAD on a value that is not finite, E-RANGE beyond the limit; ValueError (own misuse)
        on a wrong shape or above n_max contributions.
    """

    def infer(space: Space) -> Total:
        # What ``Pipeline.add`` accepts may be longer than the bound by its slack; float64 has 53 bits of the sum.
        more = space.sensitivity * (SLACK + 2.0**-52 * space.quorum.n_max)
        std = sqrt(space.quorum.n_min) * space.noise.std
        return Total(space, space.sensitivity, std, visible=True, step=1.0 / _UNIT, rounding=more, most=_bound(space))

    def init(space: Space) -> Tally:
        return Tally(np.zeros(space.dim, np.int64), None, 0)

    def add(acc: Tally, payload: Payload, space: Space) -> Tally:
        _shape(acc, payload, space)
        head = _head(acc.head, payload.head)
        limit, body = _limit(space), np.ascontiguousarray(payload.body, np.float32)
        if payload.support is None:
            good = _fold(acc.body, body, limit, _UNIT)
        else:
            good = _fold_sparse(acc.body, payload.support, body, limit, _UNIT)
        if not good:
            raise _beyond(body, space)
        return Tally(acc.body, head, acc.n + 1)

    def stream(acc: Tally, pieces: Callable[[], Iterator[Payload]], space: Space) -> Tally:
        _room(acc, space)
        head, limit, at, done = acc.head, _limit(space), 0, 0
        try:
            for piece in pieces():
                head = _head(acc.head, piece.head) if at == 0 else head
                if not _fold(acc.body[at : at + piece.body.size], piece.body, limit, _UNIT):
                    raise _beyond(piece.body, space)
                at, done = at + piece.body.size, done + 1
        except DecodeError:
            at = 0
            for piece in islice(pieces(), done):  # the sum is exact, so subtracting leaves no trace
                _fold(acc.body[at : at + piece.body.size], piece.body, limit, -_UNIT)
                at += piece.body.size
            raise
        return Tally(acc.body, head, acc.n + 1)

    def finish(acc: Tally, space: Space, precise: bool = True) -> Payload:
        kind = np.float64 if precise else np.float32
        body, piece = np.empty(acc.body.size, kind), 1 << 16  # no float64 of all coordinates on the way to float32
        for i in range(0, body.size, piece):
            body[i : i + piece] = acc.body[i : i + piece] * 2.0**-FRACTION_BITS
        return Payload(body, _total(acc.head))

    return Merge(
        "plain_sum", False, lambda _: "decodes each contribution, then merges", infer, init, add, finish, stream
    )


def _shape(acc: Tally, payload: Payload, space: Space) -> None:
    at = payload.support
    if at is None and payload.body.shape != acc.body.shape:
        raise ValueError(f"contribution has shape {payload.body.shape}, the sum {acc.body.shape}")
    if at is not None:
        inside = at.size == 0 or (at[0] >= 0 and at[-1] < acc.body.size and bool((np.diff(at) > 0).all()))
        if at.shape != payload.body.shape or not inside:
            raise ValueError(f"a support of {at.size} positions does not increase inside a sum of {acc.body.size}")
    _room(acc, space)


def _room(acc: Tally, space: Space) -> None:
    if acc.n >= space.quorum.n_max:
        raise ValueError(f"the sum holds {acc.n} contributions, its limit")


def _bound(space: Space) -> float:
    return 2.0 ** (CAPACITY_BITS - FRACTION_BITS) / space.quorum.n_max


def _limit(space: Space) -> int:
    """Bits of the largest float32 up to the bound."""
    edge = np.float32(_bound(space))
    return int(edge.view(np.int32)) - int(float(edge) > _bound(space))


def _beyond(body: NDArray[np.float32], space: Space) -> DecodeError:
    if not np.isfinite(body).all():
        return DecodeError("E-PAYLOAD", "a decoded coordinate is not finite.")
    return DecodeError(
        "E-RANGE",
        f"a coordinate of {float(np.abs(body).max()):.3g} is above the limit {_bound(space):.6g}.",
        "clip or clamp updates on the device.",
    )


def _head(total: tuple[int, ...] | None, head: NDArray[np.float64]) -> tuple[int, ...]:
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


def _total(head: tuple[int, ...] | None) -> NDArray[np.float64]:
    return np.array([v / (1 << _HEAD_UNIT) for v in head or ()], np.float64)
