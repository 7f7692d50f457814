"""The loops that numpy cannot do: counter-based rounding and sampling, bit packing, selection.

All kernels are sequential, bounds-checked where their input comes from elsewhere, and give the same bits on every
little-endian platform: integer arithmetic and IEEE float64 without contraction or reordering. Randomness is SplitMix64
of a seed and the coordinate's index, so it depends neither on block order nor on a library's generator.
Inner loops run over slices from 0 to their size: only then does the compiler know that no index is negative and turn
them into vector instructions. Work is done in runs that stay in the first-level cache.
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
_RUN = 2048  # coordinates at a time: 8 KiB of float32, 8 KiB of random words
_MAGNITUDE = np.int32(0x7FFFFFFF)  # bits of a float32 without its sign; ordered as the magnitudes are


@compiled
def mix(seed: np.uint64, i: int) -> np.uint64:
    """The i-th word of the stream ``seed``; 64 bits."""
    z = seed + (np.uint64(i) + _ONE) * _GOLDEN
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@compiled
def uniform(seed: np.uint64, i: int) -> float:
    """The i-th number in [0, 1) of the stream ``seed``; 53 bits."""
    return np.float64(mix(seed, i) >> _S11) * 2.0**-53


@compiled
def fill(seed: np.uint64, first: int, words: NDArray[np.uint64]) -> None:
    """The words ``first``, ``first`` + 1, ... of the stream ``seed``, 64 bits each."""
    for j in range(words.size):
        words[j] = mix(seed, first + j)


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
def peak(bits: NDArray[np.int32]) -> np.int32:
    """Largest magnitude of float32 values given as their bits, as bits too; above 0x7F7FFFFF: not all are finite."""
    top = np.int32(0)
    for i in range(bits.size):
        top = max(top, bits[i] & _MAGNITUDE)
    return top


@compiled
def _round_run(x: NDArray[np.float32], half: NDArray[np.int32], inverse: float, top: float, out: NDArray[Any]) -> None:
    for i in range(x.size):
        # A signed half word h is h 2^-32 + 1/2 + 2^-33: the middle of its interval, so the mean is 1/2 exactly.
        u = np.float64(half[i]) * 2.0**-32 + (0.5 + 2.0**-33)
        out[i] = np.int32(min(max(np.floor(np.float64(x[i]) * inverse + u), -top), top))


@compiled
def _round_span(
    x: NDArray[np.float32],
    start: int,
    stop: int,
    inverse: float,
    top: float,
    seed: np.uint64,
    words: NDArray[np.uint64],
    have: int,
    out: NDArray[Any],
) -> int:
    """Round x[start:stop]; ``words`` holds the randomness of the run that begins at ``have``, which is returned."""
    halves = words.view(np.int32)
    while start < stop:
        run = start // _RUN * _RUN  # runs begin at fixed places, whatever the block
        if run != have:
            fill(seed, run // 2, words)
            have = run
        now = min(stop, run + _RUN)
        _round_run(x[start:now], halves[start - run : now - run], inverse, top, out[start:now])
        start = now
    return have


@compiled
def round_levels(
    x: NDArray[np.float32],
    inverse: NDArray[np.float64],
    block: int,
    level_max: int,
    seed: np.uint64,
    out: NDArray[Any],
) -> None:
    """floor(x_i * inverse_b + u_i), cut to +-level_max; one ``inverse`` (levels per unit) per ``block`` coordinates.

    u_i = (h + 1/2) 2^-32 with h the low (even i) or high half of word i // 2 of the stream: the chance to round up is
    the fraction to within 2^-33 of a step, far below the rounding of a float32 x itself. Zero stays zero.
    """
    words, have = np.empty(_RUN // 2, np.uint64), -1
    for b in range(inverse.size):
        stop = min(x.size, (b + 1) * block)
        have = _round_span(x, b * block, stop, inverse[b], np.float64(level_max), seed, words, have, out)


@compiled
def round_blocks(
    x: NDArray[np.float32], block: int, level_max: int, seed: np.uint64, out: NDArray[Any]
) -> NDArray[np.float32]:
    """``round_levels`` with a scale found for each block while it is in the cache; returns the scales.

    A scale is the block's largest magnitude rounded up to bfloat16, at most the largest finite one; below 2^-126 it is
    0 and so are the levels. inverse = level_max / scale.
    """
    scales = np.zeros((x.size + block - 1) // block, np.float32)
    bits, as_bits = x.view(np.int32), scales.view(np.int32)
    words, have, top = np.empty(_RUN // 2, np.uint64), -1, np.float64(level_max)
    for b in range(scales.size):
        start, stop = b * block, min(x.size, (b + 1) * block)
        m = np.int64(peak(bits[start:stop]))
        inverse = 0.0
        if m >= 0x00800000:
            as_bits[b] = np.int32(min((m + np.int64(0xFFFF)) & np.int64(0xFFFF0000), np.int64(0x7F7F0000)))
            inverse = top / np.float64(scales[b])
        have = _round_span(x, start, stop, inverse, top, seed, words, have, out)
    return scales


@compiled
def _unround_run(levels: NDArray[Any], step: float, out: NDArray[np.float32]) -> None:
    for i in range(levels.size):
        out[i] = np.float32(np.float64(levels[i]) * step)


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
        start, stop = b * block, min(levels.size, (b + 1) * block)
        _unround_run(levels[start:stop], step[b], out[start:stop])
    return out


@compiled
def gather(
    bits: NDArray[np.int32],
    first: int,
    floor: int,
    where: NDArray[np.int64],
    size: NDArray[np.int32],
    have: int,
) -> tuple[int, int]:
    """Append magnitudes of at least ``floor`` (bits of float32) to ``size`` and their positions, counted from
    ``first``, to ``where``, which hold ``have``; stops before the one that no longer fits.

    Returns coordinates read, and how many are held now. Most groups of 32 have none, which a vector loop finds.
    """
    for start in range(0, bits.size, 32):
        group = bits[start : start + 32]
        if peak(group) >= floor:
            for i in range(group.size):
                m = group[i] & _MAGNITUDE
                if m >= floor:
                    if have == where.size:
                        return start + i, have
                    where[have], size[have] = first + start + i, m
                    have += 1
    return bits.size, have


@compiled
def add_bfloat16(x: NDArray[np.float32], e: NDArray[np.uint16], f: np.float32, out: NDArray[np.float32]) -> np.int32:
    """out = x + f e in float32, e given as the upper halves of float32; returns ``peak`` of it."""
    bits = out.view(np.int32)
    for i in range(e.size):
        bits[i] = np.int32(np.uint32(e[i]) << np.uint32(16))
    for i in range(x.size):
        out[i] = x[i] + f * out[i]
    return peak(bits)


@compiled
def add_float32(x: NDArray[np.float32], e: NDArray[np.float32], f: np.float32, out: NDArray[np.float32]) -> np.int32:
    """out = x + f e; returns ``peak`` of it."""
    for i in range(x.size):
        out[i] = x[i] + f * e[i]
    return peak(out.view(np.int32))


@compiled
def to_bfloat16(x: NDArray[np.float32], seed: np.uint64, out: NDArray[np.uint16]) -> None:
    """The upper halves of x, rounded up in magnitude with the probability of what they leave out; never to infinity.

    Quarter i mod 4 of word i // 4 of the stream is added to the lower half, so the mean is x within 2^-17 of a step.
    """
    bits, words = x.view(np.int32), np.empty(_RUN // 4, np.uint64)
    quarters = words.view(np.uint16)
    for start in range(0, x.size, _RUN):
        fill(seed, start // 4, words)
        now, to = bits[start : start + _RUN], out[start : start + _RUN]
        for i in range(now.size):
            m = min(np.uint32(now[i] & _MAGNITUDE) + np.uint32(quarters[i]), np.uint32(0x7F7FFFFF))
            to[i] = np.uint16((m >> np.uint32(16)) | ((np.uint32(now[i]) >> np.uint32(16)) & np.uint32(0x8000)))


@compiled
def to_int8(
    x: NDArray[np.float32], block: int, seed: np.uint64, out: NDArray[np.int8], scales: NDArray[np.float32]
) -> None:
    """As ``round_blocks`` to +-127, with the largest magnitude itself, a float32, as the scale of a block."""
    bits, as_bits = x.view(np.int32), scales.view(np.int32)
    words, have = np.empty(_RUN // 2, np.uint64), -1
    for b in range(scales.size):
        start, stop = b * block, min(x.size, (b + 1) * block)
        as_bits[b] = min(peak(bits[start:stop]), np.int32(0x7F7FFFFF))
        inverse = 127.0 / np.float64(scales[b]) if scales[b] > 0 else 0.0
        have = _round_span(x, start, stop, inverse, 127.0, seed, words, have, out)


@compiled
def _pack_words(values: NDArray[Any], width: int, words: NDArray[np.uint32]) -> None:
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
def _pack_three_bytes(x: NDArray[np.uint32], words: NDArray[np.uint32]) -> None:
    """24 bits: four values are three words. x: a multiple of four."""
    for i in range(x.size // 4):
        a, b, c, d = x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]
        words[3 * i] = a | np.uint32(b << np.uint32(24))
        words[3 * i + 1] = (b >> np.uint32(8)) | np.uint32(c << np.uint32(16))
        words[3 * i + 2] = (c >> np.uint32(16)) | np.uint32(d << np.uint32(8))


@compiled
def _unpack_words(words: NDArray[np.uint32], width: int, out: NDArray[Any]) -> None:
    mask = (_ONE << np.uint64(width)) - _ONE
    acc = np.uint64(0)
    have = 0
    at = 0
    for i in range(out.size):
        if have < width:
            acc |= np.uint64(words[at]) << np.uint64(have)
            at += 1
            have += 32
        out[i] = acc & mask
        acc >>= np.uint64(width)
        have -= width


@compiled
def _pack_narrow(x: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None:
    """1, 2 or 4 bits: the values of one output byte lie in one word of ``x``, which is folded onto itself.
    x: whole words."""
    if width == 4:
        pairs = x.view(np.uint16)
        for i in range(pairs.size):
            out[i] = np.uint8((pairs[i] | (pairs[i] >> 4)) & 0xFF)
    elif width == 2:
        fours = x.view(np.uint32)
        for i in range(fours.size):
            out[i] = np.uint8((fours[i] | (fours[i] >> 6) | (fours[i] >> 12) | (fours[i] >> 18)) & 0xFF)
    else:
        eights = x.view(np.uint64)
        for i in range(eights.size):  # byte k times 2^(56 - 7 k) puts its bit at 56 + k
            out[i] = np.uint8((eights[i] * np.uint64(0x0102040810204080)) >> np.uint64(56))


@compiled
def _unpack_narrow(raw: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None:
    """Inverse of ``_pack_narrow``."""
    if width == 4:
        pairs = out.view(np.uint16)
        for i in range(raw.size):
            b = np.uint32(raw[i])
            pairs[i] = np.uint16((b | (b << 4)) & 0x0F0F)
    elif width == 2:
        fours = out.view(np.uint32)
        for i in range(raw.size):
            b = np.uint32(raw[i])
            fours[i] = np.uint32((b | (b << 6) | (b << 12) | (b << 18)) & 0x03030303)
    else:
        eights = out.view(np.uint64)
        for i in range(raw.size):  # bit k of every byte k, then any set byte becomes 1
            z = (np.uint64(raw[i]) * np.uint64(0x0101010101010101)) & np.uint64(0x8040201008040201)
            eights[i] = ((z + np.uint64(0x7F7F7F7F7F7F7F7F)) >> np.uint64(7)) & np.uint64(0x0101010101010101)


def packed_bytes(n: int, width: int) -> int:
    """Bytes of n values of ``width`` bits."""
    return (n * width + 7) // 8


def pack_bits(values: NDArray[Any], width: int) -> memoryview:
    """Values below 2^width (not checked), least significant bit first, zero padding to a byte. width: 1 to 32.

    Quickest from uint8 at 1, 2, 4 and 8 bits, and at 16, 24 and 32; uint8 at 8 and uint32 at 32 bits are not copied.
    """
    if width in (8, 16, 32):
        return np.ascontiguousarray(values, f"<u{width // 8}").view(np.uint8).data
    size = packed_bytes(values.size, width)
    if width in (1, 2, 4):
        values = values.astype(np.uint8, copy=False)
        whole = values.size * width // 8 * (8 // width)
        out = np.empty(size, np.uint8)
        _pack_narrow(values[:whole], width, out)
        if whole < values.size:
            last = np.zeros(8 // width, np.uint8)
            last[: values.size - whole] = values[whole:]
            _pack_narrow(last, width, out[-1:])
        return out.data
    words = np.empty((values.size * width + 31) // 32, np.uint32)
    if width == 24 and values.dtype == np.uint32 and values.size % 4 == 0:
        _pack_three_bytes(values, words)
    else:
        _pack_words(values, width, words)
    return words.astype("<u4", copy=False).view(np.uint8)[:size].data


def unpack_bits(raw: memoryview, width: int, n: int) -> NDArray[Any] | None:
    """Inverse of ``pack_bits``, uint8 up to 8 bits, else uint32; the caller owns the array. None unless ``raw`` has
    exactly that many bytes and zero padding."""
    size = packed_bytes(n, width)
    spare = 8 * size - n * width
    if len(raw) != size or (spare and raw[-1] >> (8 - spare)):
        return None
    data = np.frombuffer(raw, np.uint8)
    if width == 8:
        return data.copy()
    if width in (1, 2, 4):
        out = np.empty(size * (8 // width), np.uint8)
        _unpack_narrow(data, width, out)
        return out[:n]
    padded = np.zeros((size + 3) // 4 * 4, np.uint8)
    padded[:size] = data
    wide = np.empty(n, np.uint8 if width <= 8 else np.uint32)
    _unpack_words(padded.view("<u4"), width, wide)
    return wide
