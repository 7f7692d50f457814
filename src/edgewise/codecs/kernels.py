"""The loops that numpy cannot do: counter-based rounding and sampling, bit packing, Golomb codes.

All kernels are sequential, bounds-checked where their input comes from elsewhere, and give the same bits on every
platform: integer arithmetic and IEEE float64 without contraction or reordering. Randomness is SplitMix64 of a seed and
the coordinate's index, so it depends neither on block order nor on a library's generator.
Source of the mixer: Steele, Lea, Flood 2014 (SplitMix), constants of ``java.util.SplittableRandom``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])


def compiled(f: F) -> F:
    """numba in no-Python mode, cached on disk, without the GIL; the type of ``f`` stays visible."""
    return cast(F, njit(cache=True, nogil=True)(f))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_ONE = np.uint64(1)


@compiled
def uniform(seed: np.uint64, i: int) -> float:
    """The i-th number in [0, 1) of the stream ``seed``; 53 bits."""
    z = seed + (np.uint64(i) + _ONE) * _GOLDEN
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return np.float64((z ^ (z >> _S31)) >> _S11) * 2.0**-53


@compiled
def choose(n: int, k: int, seed: np.uint64) -> NDArray[np.int64]:
    """k of 0..n-1 without replacement, increasing: selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S)."""
    out = np.empty(k, np.int64)
    have = 0
    for i in range(n):
        if have == k:
            break
        if uniform(seed, i) * np.float64(n - i) < np.float64(k - have):
            out[have] = i
            have += 1
    return out


@compiled
def round_levels(
    x: NDArray[np.float32],
    inverse: NDArray[np.float64],
    block: int,
    level_max: int,
    seed: np.uint64,
    out: NDArray[Any],
) -> None:
    """floor(x_i * inverse_b + u_i), cut to +-level_max; one ``inverse`` (levels per unit) per ``block`` coordinates."""
    top = np.float64(level_max)
    for b in range(inverse.size):
        inv = inverse[b]
        for i in range(b * block, min(x.size, (b + 1) * block)):
            q = np.floor(np.float64(x[i]) * inv + uniform(seed, i))
            out[i] = np.int32(min(max(q, -top), top))


@compiled
def flip_coins(
    x: NDArray[np.float32], inverse: NDArray[np.float64], block: int, seed: np.uint64, out: NDArray[np.int8]
) -> None:
    """1 with probability (1 + x_i * inverse_b) / 2, else -1."""
    for b in range(inverse.size):
        inv = inverse[b]
        for i in range(b * block, min(x.size, (b + 1) * block)):
            out[i] = 1 if 2.0 * uniform(seed, i) < 1.0 + np.float64(x[i]) * inv else -1


@compiled
def unround(levels: NDArray[Any], step: NDArray[np.float64], block: int) -> NDArray[np.float32]:
    """level * step_b in float64, then float32."""
    out = np.empty(levels.size, np.float32)
    for b in range(step.size):
        s = step[b]
        for i in range(b * block, min(levels.size, (b + 1) * block)):
            out[i] = np.float32(np.float64(levels[i]) * s)
    return out


@compiled
def _pack_words(values: NDArray[np.uint32], width: int, words: NDArray[np.uint32]) -> None:
    acc = np.uint64(0)
    have = 0
    at = 0
    for i in range(values.size):
        acc |= np.uint64(values[i]) << np.uint64(have)
        have += width
        if have >= 32:
            words[at] = np.uint32(acc & np.uint64(0xFFFFFFFF))
            at += 1
            acc >>= np.uint64(32)
            have -= 32
    if have > 0:
        words[at] = np.uint32(acc)


@compiled
def _unpack_words(words: NDArray[np.uint32], width: int, n: int) -> NDArray[np.uint32]:
    out = np.empty(n, np.uint32)
    mask = (_ONE << np.uint64(width)) - _ONE
    acc = np.uint64(0)
    have = 0
    at = 0
    for i in range(n):
        if have < width:
            acc |= np.uint64(words[at]) << np.uint64(have)
            at += 1
            have += 32
        out[i] = np.uint32(acc & mask)
        acc >>= np.uint64(width)
        have -= width
    return out


def packed_bytes(n: int, width: int) -> int:
    """Bytes of n values of ``width`` bits."""
    return (n * width + 7) // 8


def pack_bits(values: NDArray[Any], width: int) -> bytes:
    """Values below 2^width (not checked), least significant bit first, zero padding to a byte. width: 1 to 32."""
    if width == 8:
        return values.astype(np.uint8).tobytes()
    values = values.astype(np.uint32, copy=False)
    words = np.zeros((values.size * width + 31) // 32, np.uint32)
    _pack_words(values, width, words)
    return words.astype("<u4").tobytes()[: packed_bytes(values.size, width)]


def unpack_bits(raw: memoryview, width: int, n: int) -> NDArray[Any] | None:
    """Inverse of ``pack_bits``; None unless ``raw`` has exactly that many bytes and zero padding."""
    size = packed_bytes(n, width)
    spare = 8 * size - n * width
    if len(raw) != size or (spare and raw[-1] >> (8 - spare)):
        return None
    if width == 8:
        return np.array(np.frombuffer(raw, np.uint8))
    padded = np.zeros((size + 3) // 4 * 4, np.uint8)
    padded[:size] = np.frombuffer(raw, np.uint8)
    return _unpack_words(padded.view("<u4").astype(np.uint32, copy=False), width, n)


@compiled
def _golomb_bits(positions: NDArray[np.int64], m: int, low: int, cut: int) -> int:
    bits = 0
    last = -1
    for i in range(positions.size):
        gap = positions[i] - last - 1
        last = positions[i]
        bits += gap // m + 1 + low + (1 if gap % m >= cut else 0)
    return bits


@compiled
def _golomb_write(positions: NDArray[np.int64], m: int, low: int, cut: int, out: NDArray[np.uint8]) -> None:
    acc = np.uint64(0)  # bits not yet written, fewer than 8 of them between two steps
    have = 0
    at = 0
    last = -1
    for i in range(positions.size):
        gap = positions[i] - last - 1
        last = positions[i]
        ones = gap // m
        rest = gap - ones * m
        while ones > 0:
            now = min(ones, 32)
            acc |= ((_ONE << np.uint64(now)) - _ONE) << np.uint64(have)
            have += now
            ones -= now
            while have >= 8:
                out[at] = np.uint8(acc & np.uint64(0xFF))
                acc >>= np.uint64(8)
                have -= 8
                at += 1
        have += 1  # the zero that ends the unary part
        if rest < cut:
            acc |= np.uint64(rest) << np.uint64(have)
            have += low
        else:
            long = rest + cut
            acc |= (np.uint64(long >> 1) | (np.uint64(long & 1) << np.uint64(low))) << np.uint64(have)
            have += low + 1
        while have >= 8:
            out[at] = np.uint8(acc & np.uint64(0xFF))
            acc >>= np.uint64(8)
            have -= 8
            at += 1
    if have > 0:
        out[at] = np.uint8(acc & np.uint64(0xFF))


def _truncated(m: int) -> tuple[int, int]:
    """Of remainders below m: bits of the short ones, and how many are short; the others have one bit more."""
    width = (m - 1).bit_length()
    return max(0, width - 1), (1 << width) - m if m > 1 else 1


def golomb_encode(positions: NDArray[np.int64], m: int) -> bytes:
    """Gaps between strictly increasing positions: quotient by m in unary (ones, then a zero), remainder in truncated
    binary (its last bit last). m: 1 to 2^40."""
    low, cut = _truncated(m)
    out = np.zeros((_golomb_bits(positions, m, low, cut) + 7) // 8, np.uint8)
    _golomb_write(positions, m, low, cut, out)
    return out.tobytes()


@compiled
def _golomb_read(data: NDArray[np.uint8], m: int, low: int, cut: int, universe: int, out: NDArray[np.int64]) -> int:
    size = data.size
    acc = np.uint64(0)  # the next ``have`` bits
    have = 0
    byte = 0
    at = -1
    for i in range(out.size):
        at += 1
        while True:  # unary part
            if have == 0:
                while have <= 48 and byte < size:
                    acc |= np.uint64(data[byte]) << np.uint64(have)
                    have += 8
                    byte += 1
                if have == 0:
                    return -1
            if at >= universe:
                return -1
            one = acc & _ONE
            acc >>= _ONE
            have -= 1
            if one == np.uint64(0):
                break
            at += m
        while have <= 48 and byte < size:
            acc |= np.uint64(data[byte]) << np.uint64(have)
            have += 8
            byte += 1
        if have < low:
            return -1
        rest: Any = np.int64(acc & ((_ONE << np.uint64(low)) - _ONE))
        acc >>= np.uint64(low)
        have -= low
        if rest >= cut:
            if have < 1:
                return -1
            rest = 2 * rest + np.int64(acc & _ONE) - cut
            acc >>= _ONE
            have -= 1
        at += rest
        if at >= universe:
            return -1
        out[i] = at
    spare = have & 7  # the rest of the last byte that was begun
    if acc & ((_ONE << np.uint64(spare)) - _ONE):
        return -1
    return byte - have // 8


def golomb_decode(data: NDArray[np.uint8], m: int, universe: int, out: NDArray[np.int64]) -> int:
    """Fill ``out`` with positions; returns the bytes read, or -1 when the data ends, leaves [0, universe), or pads
    with ones. Time is linear in the bytes read."""
    low, cut = _truncated(m)
    return int(_golomb_read(data, m, low, cut, universe, out))
