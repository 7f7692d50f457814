"""Pack integers of a few bits into bytes, and unpack them strictly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled

ONE = np.uint64(1)


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
    """Pack 24-bit values: four values are three words. The size of x is a multiple of four."""
    for i in range(x.size // 4):
        a, b, c, d = x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]
        words[3 * i] = a | np.uint32(b << np.uint32(24))
        words[3 * i + 1] = (b >> np.uint32(8)) | np.uint32(c << np.uint32(16))
        words[3 * i + 2] = (c >> np.uint32(16)) | np.uint32(d << np.uint32(8))


@compiled
def _unpack_words(words: NDArray[np.uint32], width: int, out: NDArray[Any]) -> None:
    mask = (ONE << np.uint64(width)) - ONE
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
    """Pack values of 1, 2 or 4 bits.

    The values of one output byte lie in one word of ``x``, which is folded onto itself. x consists of whole words.
    """
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
        for i in range(eights.size):  # Multiplying byte k by 2^(56 - 7 k) moves its bit to position 56 + k.
            out[i] = np.uint8((eights[i] * np.uint64(0x0102040810204080)) >> np.uint64(56))


@compiled
def _unpack_narrow(raw: NDArray[np.uint8], width: int, out: NDArray[np.uint8]) -> None:
    """Unpack values of 1, 2 or 4 bits. Inverse of ``_pack_narrow``."""
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
        for i in range(raw.size):  # Byte k keeps bit k alone. Then each nonzero byte becomes 1.
            z = (np.uint64(raw[i]) * np.uint64(0x0101010101010101)) & np.uint64(0x8040201008040201)
            eights[i] = ((z + np.uint64(0x7F7F7F7F7F7F7F7F)) >> np.uint64(7)) & np.uint64(0x0101010101010101)


def packed_bytes(n: int, width: int) -> int:
    """Number of bytes of n values of ``width`` bits."""
    return (n * width + 7) // 8


def pack_bits(values: NDArray[Any], width: int) -> memoryview:
    """Pack values below 2^width (not checked), least significant bit first, with zero padding to a byte.

    Fastest from uint8 at 1, 2, 4 and 8 bits, and at 16, 24 and 32 bits. uint8 at 8 and uint32 at 32 bits are not
    copied.

    Args:
        values: integers, any dtype.
        width: bits per value, 1 to 32.
    Returns:
        ``packed_bytes(n, width)`` bytes.
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
    """Unpack n values of ``width`` bits. Inverse of ``pack_bits``.

    Returns:
        uint8 up to 8 bits, else uint32. The caller owns the array. None unless ``raw`` has exactly the right number of
        bytes and zero padding.
    """
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
