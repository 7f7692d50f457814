"""Payloads as bytes. The Space alone fixes the layout, so nothing in the bytes describes itself or can lie.

    head     float64 little-endian, one per name
    scales   bfloat16 (upper half of a float32), one per block
    support  Golomb code of the gaps, parameter from the density. A bitmap of the universe if that is shorter. If chunks
             have few positions each: positions inside their chunk in log2(chunk) bits
    body     REAL float32. INTEGER (level + level_max) / stride in ``bits`` bits. RING residue in log2(modulus) bits

A stage that writes its payloads otherwise gives the Space a ``Layout`` (``mixed``, ``ladder``).

Integers are little-endian, bits least significant first, each part padded with zero bits to a byte. The decoder accepts
exactly the encoder's output. It raises DecodeError(E-PAYLOAD) for a truncated, oversized or trailing byte, a nonzero
padding bit, a level out of range, positions outside the universe, a float that is not finite, and a head beyond its
bound. It checks the total length first and allocates nothing beyond the size that the Space announces.

Source: Golomb 1966. Best parameter for geometric gaps: Gallager and van Voorhis 1975. Within 0.6 % of the entropy of
random positions at densities from 0.1 to 5 % (benchmarks/index_bytes.py).
"""

from __future__ import annotations

from math import ceil, expm1, hypot, log, log1p
from typing import Any, Never

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.wire import golomb
from edgewise.core.errors import DecodeError
from edgewise.core.payload import Payload
from edgewise.core.space import Kind, Space, Support
from edgewise.core.stage import WEIGHT
from edgewise.core.vector import finite
from edgewise.kernels.bits import pack_bits, packed_bytes, unpack_bits

_COUNT_BYTES = 4  # bytes of the number of positions, for positions that travel alone


def golomb_parameter(n: int, universe: int) -> int:
    """Compute m for n positions among ``universe``: m = ceil(log(2 - p) / -log(1 - p)). 1 means a bitmap."""
    if not n or n >= universe:
        return 1
    p = n / universe
    return max(1, ceil(log(2.0 - p) / -log1p(-p) - 1e-9))  # 1e-9, because logarithms may differ in their last bit.


def size_bytes(space: Space) -> float:
    """Compute the bytes of one packed payload.

    Exact, except for Golomb-coded supports, for which it is the expectation over random ones, and for a ``Layout``,
    which says what it returns.
    """
    if space.layout is not None:
        return space.layout.size_bytes(space)
    support = _positions_bytes(space)
    return _before_support(space) + support + _body_bytes(space)


def pack(payload: Payload, space: Space) -> bytes:
    """Write the payload as bytes. Raises ValueError if it does not belong to ``space`` (own misuse)."""
    if space.layout is not None:
        return space.layout.pack(payload, space)
    parts: list[bytes | memoryview] = [pack_head(payload, space)]
    if space.grid.block:
        parts.append(pack_scales(payload.scales, _block_count(space)))
    if space.sparse:
        if payload.support is None or payload.support.shape != (space.dim,):
            raise ValueError("support missing or of the wrong length")
        parts.append(_write_positions(payload.support, space))
    if space.grid.kind is Kind.REAL:
        parts.append(np.ascontiguousarray(payload.body, "<f4").data)
    else:
        parts.append(pack_bits(_packed_indices(payload.body, space), _level_bits(space)))
    return b"".join(parts)


def pack_head(payload: Payload, space: Space) -> bytes:
    """Write the head, with which every layout begins. Raises ValueError if body or head do not belong to ``space``."""
    body, head = payload.body, payload.head
    if body.shape != (space.dim,) or head.shape != (len(space.head),):
        raise ValueError(f"body {body.shape} and head {head.shape} do not fit {space.dim} and {len(space.head)}")
    return head.astype("<f8").tobytes()


def pack_scales(scales: NDArray[np.float32] | None, n: int) -> bytes:
    """Write n travelling scales, bfloat16. Raises ValueError for others."""
    if scales is None or scales.shape != (n,):
        raise ValueError("scales missing or of the wrong length")
    words = scales.view(np.uint32)
    if (words & np.uint32(0xFFFF)).any():
        raise ValueError("scales are not bfloat16")
    return (words >> np.uint32(16)).astype("<u2").tobytes()


def _packed_indices(body: NDArray[Any], space: Space) -> NDArray[Any]:
    """Convert encoded integers to unsigned numbers of the packer.

    Raises ValueError for one that is no value of the grid.
    """
    if space.grid.kind is Kind.RING:
        if body.size and int(body.max()) >= space.grid.modulus:
            raise ValueError("level out of range")
        return body.astype(np.uint32)
    if body.size and not -space.grid.level_max <= int(body.min()) <= int(body.max()) <= space.grid.level_max:
        raise ValueError("level out of range")
    small = body.dtype == np.int8  # Adding level_max to a byte wraps around, and gives the right unsigned byte.
    body = body if small else body.astype(np.int32, copy=False)
    levels: NDArray[Any] = (body + body.dtype.type(space.grid.level_max)).view(np.uint8 if small else np.uint32)
    if space.grid.stride == 1:
        return levels
    if (levels & 1).any():
        raise ValueError("level between two values of the grid")
    half: NDArray[Any] = levels >> levels.dtype.type(1)
    return half


def unpack(raw: bytes | memoryview, space: Space) -> Payload:
    """Read a payload. Inverse of ``pack``. Raises DecodeError(E-PAYLOAD) for anything that ``pack`` does not write."""
    view = memoryview(raw).cast("B")
    if space.layout is not None:
        return space.layout.unpack(view, space)
    fixed = _before_support(space) + _body_bytes(space)
    least, most = (fixed, fixed) if not space.sparse else (fixed, fixed + _positions_limit(space))
    if not least <= len(view) <= most:
        refuse_payload(f"{len(view)} bytes, expected {least}" + (f" to {most}" if most > least else ""))
    at = 8 * len(space.head)
    scales = None
    if space.grid.block:
        scales = unpack_scales(view[at : at + 2 * _block_count(space)])
        at += 2 * _block_count(space)
    support = None
    if space.sparse:
        support, used = _read_positions(view[at:], space)
        at += used
    if len(view) - at != _body_bytes(space):
        refuse_payload(f"{len(view) - at} bytes of body, expected {_body_bytes(space)}")
    body = _unpack_body(view[at:], space)
    return Payload(body, unpack_head(view, space), support, scales)


def unpack_head(view: memoryview, space: Space) -> NDArray[np.float64]:
    """Read the head from the start of ``view``. Raises DecodeError(E-PAYLOAD) beyond its bounds."""
    head = np.frombuffer(view[: 8 * len(space.head)], "<f8").astype(np.float64)
    if not np.isfinite(head).all():
        refuse_payload("a head value is not finite")
    if hypot(*head.tolist()) > space.head_l2 * (1.0 + 1e-9):
        refuse_payload(f"the head is longer than its bound {space.head_l2:g}")
    if WEIGHT in space.head and not 0.0 <= head[space.head.index(WEIGHT)] <= 1.0:
        refuse_payload("the weight is not between 0 and 1")
    return head


def unpack_scales(raw: memoryview) -> NDArray[np.float32]:
    """Convert bfloat16 words to float32. Raises DecodeError(E-PAYLOAD) for a scale that no encoder sends."""
    words = np.frombuffer(raw, "<u2").astype(np.uint32)
    if words.size and words.max() >= 0x7F80:  # These are infinities, NaN, and all negative numbers.
        refuse_payload("a scale is negative or not finite")
    return (words << np.uint32(16)).view(np.float32)


def _unpack_body(raw: memoryview, space: Space) -> NDArray[Any]:
    if space.grid.kind is Kind.REAL:
        x = np.frombuffer(raw, "<f4").astype(np.float32)
        if not finite(x):
            refuse_payload("a coordinate is not finite")
        return x
    levels = unpack_bits(raw, _level_bits(space), space.dim)
    if levels is None:
        refuse_payload("nonzero padding after the body")
    if levels.size and _level_values(space) < 1 << _level_bits(space) and int(levels.max()) >= _level_values(space):
        refuse_payload("a level is out of range")
    if space.grid.kind is Kind.RING:
        return levels.astype(np.uint32, copy=False)
    if space.grid.level_max <= 127:
        small = levels.astype(np.uint8, copy=False)
        if space.grid.stride == 2:
            np.left_shift(small, np.uint8(1), out=small)
        return np.subtract(small, np.uint8(space.grid.level_max), out=small).view(np.int8)
    return (levels.astype(np.int64) * space.grid.stride - space.grid.level_max).astype(np.int32)


def pack_support(support: NDArray[np.int64], universe: int) -> bytes:
    """Write positions alone: n as little-endian uint32, then a Golomb code, or a bitmap if shorter.

    Args:
        support: int64[n], strictly increasing, below ``universe``.
    Raises:
        ValueError: other positions.
    """
    return support.size.to_bytes(_COUNT_BYTES, "little") + _write_support(support, universe)


def unpack_support(raw: bytes | memoryview, most: int, universe: int) -> NDArray[np.int64]:
    """Read up to ``most`` positions. Inverse of ``pack_support``.

    Raises:
        DecodeError: E-PAYLOAD for bytes that ``pack_support`` does not write.
    """
    view = memoryview(raw).cast("B")
    n = int.from_bytes(view[:_COUNT_BYTES], "little")
    if len(view) < _COUNT_BYTES or n > min(most, universe):
        refuse_payload(f"a support of {n} positions, expected at most {min(most, universe)}")
    support, used = _read_support(view[_COUNT_BYTES:], n, universe)
    if _COUNT_BYTES + used != len(view):
        refuse_payload("the support has the wrong length")
    return support


def announced_support_bytes(n: int, universe: int) -> float:
    """Compute the expected bytes of ``pack_support`` for n random positions."""
    return _COUNT_BYTES + _support_bytes(n, universe)


def _write_positions(support: NDArray[np.int64], space: Space) -> bytes | memoryview:
    if _support_of(space).chunk and not _is_one_share_per_chunk(support, space):
        raise ValueError("the support does not have each chunk's share of positions")
    if not _is_relative_to_chunk(space):
        return _write_support(support, space.universe)
    if support.size and not (support[0] >= 0 and support[-1] < space.universe and (np.diff(support) > 0).all()):
        raise ValueError("support is not strictly increasing inside the universe")
    return pack_bits(support - _chunk_starts(space), _offset_bits(space))


def _read_positions(view: memoryview, space: Space) -> tuple[NDArray[np.int64], int]:
    """Read the payload's positions from the start of ``view``, and count the bytes that they took."""
    if _is_relative_to_chunk(space):
        size = packed_bytes(space.dim, _offset_bits(space))
        offsets = unpack_bits(view[:size], _offset_bits(space), space.dim)
        if offsets is None:
            refuse_payload("nonzero padding after the support")
        support = offsets.astype(np.int64) + _chunk_starts(space)
        if support.size and not ((np.diff(support) > 0).all() and support[-1] < space.universe):
            refuse_payload("positions do not increase inside the universe")
    else:
        support, size = _read_support(view, space.dim, space.universe)
    if _support_of(space).chunk and not _is_one_share_per_chunk(support, space):
        refuse_payload("the support does not have each chunk's share of positions")
    return support, size


def _support_of(space: Space) -> Support:
    """Support that the space says travels."""
    assert space.support is not None
    return space.support


def _is_one_share_per_chunk(support: NDArray[np.int64], space: Space) -> bool:
    """Tell whether each chunk has its announced number of positions."""
    return bool((support // _support_of(space).chunk == _chunk_starts(space) // _support_of(space).chunk).all())


def _chunk_starts(space: Space) -> NDArray[np.int64]:
    """Compute the first coordinate of each position's chunk: int64[dim]."""
    whole = space.universe // _support_of(space).chunk
    counts = np.full(whole + 1, _support_of(space).chunk_k)
    counts[-1] = space.dim - whole * _support_of(space).chunk_k
    return np.repeat(np.arange(whole + 1, dtype=np.int64) * _support_of(space).chunk, counts)


def _offset_bits(space: Space) -> int:
    return (_support_of(space).chunk - 1).bit_length()


def _is_relative_to_chunk(space: Space) -> bool:
    """Return True if positions travel relative to their chunk. The Space alone decides this."""
    if not _support_of(space).chunk:
        return False
    return packed_bytes(space.dim, _offset_bits(space)) < _support_bytes(space.dim, space.universe)


def _write_support(support: NDArray[np.int64], universe: int) -> bytes:
    if support.size and (support[0] < 0 or support[-1] >= universe or (np.diff(support) <= 0).any()):
        raise ValueError("support is not strictly increasing inside the universe")
    if (m := golomb_parameter(support.size, universe)) > 1:
        return golomb.golomb_encode(support, m)
    bitmap = np.zeros(universe, np.uint8)
    bitmap[support] = 1
    return np.packbits(bitmap, bitorder="little").tobytes()


def _read_support(view: memoryview, n: int, universe: int) -> tuple[NDArray[np.int64], int]:
    """Read n positions from the start of ``view``, and count the bytes that they took."""
    if (m := golomb_parameter(n, universe)) > 1:
        support = np.empty(n, np.int64)
        used = golomb.golomb_decode(np.frombuffer(view, np.uint8), m, universe, support)
        if used < 0:
            refuse_payload("the support is not a valid Golomb code")
        return support, used
    size = (universe + 7) // 8
    bits = np.unpackbits(np.frombuffer(view[:size], np.uint8), bitorder="little")
    support = np.flatnonzero(bits).astype(np.int64)
    if support.size != n or (support.size and support[-1] >= universe):
        refuse_payload("the support's bitmap has the wrong number of bits")
    return support, size


def _block_count(space: Space) -> int:
    """Count the scales that travel."""
    return space.grid.scales * -(-space.dim // space.grid.block)


def _level_bits(space: Space) -> int:
    """Bits of one level."""
    return (space.grid.modulus - 1).bit_length() if space.grid.kind is Kind.RING else int(space.grid.bits)


def _level_values(space: Space) -> int:
    """Count the values that a level can have."""
    return space.grid.modulus if space.grid.kind is Kind.RING else 2 * space.grid.level_max // space.grid.stride + 1


def _before_support(space: Space) -> int:
    return 8 * len(space.head) + (2 * _block_count(space) if space.grid.block else 0)


def _body_bytes(space: Space) -> int:
    return 4 * space.dim if space.grid.kind is Kind.REAL else packed_bytes(space.dim, _level_bits(space))


def _positions_bytes(space: Space) -> float:
    if not space.sparse:
        return 0
    if _is_relative_to_chunk(space):
        return packed_bytes(space.dim, _offset_bits(space))
    return _support_bytes(space.dim, space.universe)


def _positions_limit(space: Space) -> int:
    if _is_relative_to_chunk(space):
        return packed_bytes(space.dim, _offset_bits(space))
    return _support_limit(space.dim, space.universe)


def _support_bytes(n: int, universe: int) -> float:
    """Compute the expected bytes of ``pack_support`` for n random positions.

    Gaps are geometric with density p, q = 1 - p. Each takes 1 / (1 - q^m) bits of quotient and the mean remainder's
    bits. Padding takes half a byte.
    """
    m = golomb_parameter(n, universe)
    if m == 1:
        return (universe + 7) // 8
    width = (m - 1).bit_length()
    log_q = log1p(-n / universe)
    begun = -expm1(m * log_q)  # 1 - q^m
    short = -expm1(((1 << width) - m) * log_q) / begun
    return float(n * (1.0 / begun + width - short) / 8 + 7 / 16)


def _support_limit(n: int, universe: int) -> int:
    """Compute the longest support that the encoder can write. All quotients together are at most universe / m."""
    m = golomb_parameter(n, universe)
    if m == 1:
        return (universe + 7) // 8
    return (n * (1 + (m - 1).bit_length()) + universe // m + 7) // 8


def refuse_payload(why: str) -> Never:
    """Refuse a payload: raise DecodeError(E-PAYLOAD) with this reason."""
    raise DecodeError("E-PAYLOAD", f"not a valid payload: {why}.")
