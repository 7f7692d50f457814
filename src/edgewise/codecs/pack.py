"""Payload <-> bytes. The layout is fixed by the Space alone, so nothing in the bytes describes itself or can lie.

    head     float64 little-endian, one per name
    scales   bfloat16 (upper half of a float32), one per block
    support  Golomb code of the gaps, parameter from the density; a bitmap of the universe where that is shorter; where
             chunks have few positions each, positions inside their chunk in log2(chunk) bits
    body     REAL float32; INTEGER (level + level_max) / stride in ``bits`` bits; RING residue in log2(modulus) bits

Integers are little-endian, bits least significant first, each part padded with zero bits to a byte. The decoder accepts
exactly what the encoder can produce: a truncated, oversized or trailing byte, a nonzero padding bit, a level out of
range, positions outside the universe, a float that is not finite, a head beyond its bound is a DecodeError(E-PAYLOAD).
It checks the total length first and allocates nothing beyond what the Space announces.
Source: Golomb 1966; best parameter for geometric gaps: Gallager and van Voorhis 1975. Within 0.6 % of the entropy of
random positions at densities from 0.1 to 5 % (benchmarks/index_bytes.py).
"""

from __future__ import annotations

from math import ceil, expm1, hypot, log, log1p
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs import kernels
from edgewise.core.errors import DecodeError
from edgewise.core.space import Kind, Space
from edgewise.core.stage import WEIGHT, Payload


def golomb_parameter(n: int, universe: int) -> int:
    """m for n positions among ``universe``, m = ceil(log(2 - p) / -log(1 - p)); 1 means that a bitmap is used."""
    if not n or n >= universe:
        return 1
    p = n / universe
    return max(1, ceil(log(2.0 - p) / -log1p(-p) - 1e-9))  # the hair: logarithms may differ in their last bit


def size_bytes(space: Space) -> float:
    """Bytes of one packed payload: exact, except Rice-coded supports, where it is the expectation over random ones."""
    return _before_support(space) + _support_bytes(space) + _body_bytes(space)


def pack(payload: Payload, space: Space) -> bytes:
    """The payload as bytes. Raises ValueError when it does not belong to ``space`` (own misuse)."""
    body, head = payload.body, payload.head
    if body.shape != (space.dim,) or head.shape != (len(space.head),):
        raise ValueError(f"body {body.shape} and head {head.shape} do not fit {space.dim} and {len(space.head)}")
    parts: list[bytes | memoryview] = [head.astype("<f8").tobytes()]
    if space.block:
        if payload.scales is None or payload.scales.shape != (_blocks(space),):
            raise ValueError("scales missing or of the wrong length")
        words = payload.scales.view(np.uint32)
        if (words & np.uint32(0xFFFF)).any():
            raise ValueError("scales are not bfloat16")
        parts.append((words >> np.uint32(16)).astype("<u2").tobytes())
    if space.sparse:
        if payload.support is None or payload.support.shape != (space.dim,):
            raise ValueError("support missing or of the wrong length")
        parts.append(_pack_support(payload.support, space))
    if space.kind is Kind.REAL:
        parts.append(np.ascontiguousarray(body, "<f4").data)
    else:
        parts.append(kernels.pack_bits(_indices(body, space), _width(space)))
    return b"".join(parts)


def _indices(body: NDArray[Any], space: Space) -> NDArray[Any]:
    """Encoded integers as unsigned numbers of the packer. Raises ValueError on one that is no value of the grid."""
    if space.kind is Kind.RING:
        if body.size and int(body.max()) >= space.modulus:
            raise ValueError("level out of range")
        return body.astype(np.uint32)
    if body.size and not -space.level_max <= int(body.min()) <= int(body.max()) <= space.level_max:
        raise ValueError("level out of range")
    small = body.dtype == np.int8  # wraps around, which is what adding level_max to a byte should do
    body = body if small else body.astype(np.int32, copy=False)
    levels: NDArray[Any] = (body + body.dtype.type(space.level_max)).view(np.uint8 if small else np.uint32)
    if space.stride == 1:
        return levels
    if (levels & 1).any():
        raise ValueError("level between two values of the grid")
    half: NDArray[Any] = levels >> levels.dtype.type(1)
    return half


def unpack(raw: bytes | memoryview, space: Space) -> Payload:
    """Inverse of ``pack``. Raises DecodeError(E-PAYLOAD) on anything that ``pack`` cannot have produced."""
    view = memoryview(raw).cast("B")
    fixed = _before_support(space) + _body_bytes(space)
    least, most = (fixed, fixed) if not space.sparse else (fixed, fixed + _support_limit(space))
    if not least <= len(view) <= most:
        _refuse(f"{len(view)} bytes, expected {least}" + (f" to {most}" if most > least else ""))
    head = np.frombuffer(view[: 8 * len(space.head)], "<f8").astype(np.float64)
    at = 8 * len(space.head)
    scales = None
    if space.block:
        words = np.frombuffer(view[at : at + 2 * _blocks(space)], "<u2").astype(np.uint32)
        if words.size and words.max() >= 0x7F80:  # infinities, NaN, and every negative number
            _refuse("a scale is negative or not finite")
        scales = (words << np.uint32(16)).view(np.float32)
        at += 2 * _blocks(space)
    support = None
    if space.sparse:
        support, at = _unpack_support(view, at, space)
    if len(view) - at != _body_bytes(space):
        _refuse(f"{len(view) - at} bytes of body, expected {_body_bytes(space)}")
    body = _unpack_body(view[at:], space)
    _check_head(head, space)
    return Payload(body, head, support, scales)


def _check_head(head: NDArray[np.float64], space: Space) -> None:
    if not np.isfinite(head).all():
        _refuse("a head value is not finite")
    if hypot(*head.tolist()) > space.head_l2 * (1.0 + 1e-9):
        _refuse(f"the head is longer than its bound {space.head_l2:g}")
    if WEIGHT in space.head and not 0.0 <= head[space.head.index(WEIGHT)] <= 1.0:
        _refuse("the weight is not between 0 and 1")


def _unpack_body(raw: memoryview, space: Space) -> NDArray[Any]:
    if space.kind is Kind.REAL:
        x = np.frombuffer(raw, "<f4").astype(np.float32)
        if not np.isfinite(x).all():
            _refuse("a coordinate is not finite")
        return x
    levels = kernels.unpack_bits(raw, _width(space), space.dim)
    if levels is None:
        _refuse("nonzero padding after the body")
    if levels.size and _values(space) < 1 << _width(space) and int(levels.max()) >= _values(space):
        _refuse("a level is out of range")
    if space.kind is Kind.RING:
        return levels.astype(np.uint64)
    if space.level_max <= 127:
        small = levels.astype(np.uint8, copy=False)
        if space.stride == 2:
            small = small << np.uint8(1)
        return (small - np.uint8(space.level_max)).view(np.int8)
    return (levels.astype(np.int64) * space.stride - space.level_max).astype(np.int32)


def _pack_support(support: NDArray[np.int64], space: Space) -> bytes:
    if not _increases(support, space):
        raise ValueError("support is not strictly increasing inside the universe, with each chunk's share")
    if _inside(space):
        return kernels.pack_bits(support - _starts(space), _offset_bits(space))
    if (m := golomb_parameter(space.dim, space.universe)) > 1:
        return kernels.golomb_encode(support, m)
    bitmap = np.zeros(space.universe, np.uint8)
    bitmap[support] = 1
    return np.packbits(bitmap, bitorder="little").tobytes()


def _unpack_support(view: memoryview, at: int, space: Space) -> tuple[NDArray[np.int64], int]:
    if _inside(space):
        size = kernels.packed_bytes(space.dim, _offset_bits(space))
        offsets = kernels.unpack_bits(view[at : at + size], _offset_bits(space), space.dim)
        if offsets is None:
            _refuse("nonzero padding after the support")
        support, at = offsets.astype(np.int64) + _starts(space), at + size
    elif (m := golomb_parameter(space.dim, space.universe)) > 1:
        support = np.empty(space.dim, np.int64)
        used = kernels.golomb_decode(np.frombuffer(view[at:], np.uint8), m, space.universe, support)
        if used < 0:
            _refuse("the support is not a valid Golomb code")
        at += used
    else:
        size = (space.universe + 7) // 8
        bits = np.unpackbits(np.frombuffer(view[at : at + size], np.uint8), bitorder="little")
        support, at = np.flatnonzero(bits).astype(np.int64), at + size
        if support.size != space.dim:
            _refuse("the support's bitmap has the wrong number of bits")
    if not _increases(support, space):
        _refuse("positions do not increase inside the universe, with each chunk's share (a bitmap's padding is zero)")
    return support, at


def _increases(support: NDArray[np.int64], space: Space) -> bool:
    if not support.size:
        return True
    inside = support[0] >= 0 and support[-1] < space.universe and bool((support[1:] > support[:-1]).all())
    return inside and (not space.chunk or bool((support // space.chunk == _starts(space) // space.chunk).all()))


def _starts(space: Space) -> NDArray[np.int64]:
    """int64[dim]: where each position's chunk begins."""
    whole = space.universe // space.chunk
    counts = np.full(whole + 1, space.chunk_k)
    counts[-1] = space.dim - whole * space.chunk_k
    return np.repeat(np.arange(whole + 1, dtype=np.int64) * space.chunk, counts)


def _offset_bits(space: Space) -> int:
    return (space.chunk - 1).bit_length()


def _inside(space: Space) -> bool:
    """Whether positions travel relative to their chunk: a choice that the Space alone makes."""
    return space.chunk > 0 and kernels.packed_bytes(space.dim, _offset_bits(space)) < _free_bytes(space)


def _blocks(space: Space) -> int:
    return space.scales * -(-space.dim // space.block)


def _width(space: Space) -> int:
    return (space.modulus - 1).bit_length() if space.kind is Kind.RING else int(space.bits)


def _values(space: Space) -> int:
    return space.modulus if space.kind is Kind.RING else 2 * space.level_max // space.stride + 1


def _before_support(space: Space) -> int:
    return 8 * len(space.head) + (2 * _blocks(space) if space.block else 0)


def _body_bytes(space: Space) -> int:
    return 4 * space.dim if space.kind is Kind.REAL else kernels.packed_bytes(space.dim, _width(space))


def _support_bytes(space: Space) -> float:
    if not space.sparse:
        return 0
    return kernels.packed_bytes(space.dim, _offset_bits(space)) if _inside(space) else _free_bytes(space)


def _free_bytes(space: Space) -> float:
    """Of a bitmap, or expected of a Golomb code: gaps are geometric, q = 1 - p, so each takes 1 / (1 - q^m) bits of
    quotient and the mean remainder's bits; half a byte of padding."""
    m = golomb_parameter(space.dim, space.universe)
    if m == 1:
        return (space.universe + 7) // 8
    width = (m - 1).bit_length()
    log_q = log1p(-space.dim / space.universe)
    begun = -expm1(m * log_q)  # 1 - q^m
    short = -expm1(((1 << width) - m) * log_q) / begun
    return float(space.dim * (1.0 / begun + width - short) / 8 + 7 / 16)


def _support_limit(space: Space) -> int:
    """The longest support the encoder can write: all quotients together are at most universe / m."""
    if _inside(space):
        return kernels.packed_bytes(space.dim, _offset_bits(space))
    m = golomb_parameter(space.dim, space.universe)
    if m == 1:
        return (space.universe + 7) // 8
    return (space.dim * (1 + (m - 1).bit_length()) + space.universe // m + 7) // 8


def _refuse(why: str) -> Never:
    raise DecodeError("E-PAYLOAD", f"not a valid payload: {why}.")
