"""Golomb codes of increasing positions, a machine word at a time.

Gaps between positions chosen at random are geometric. Golomb's code with the right parameter is the best prefix code
for them. Source: Golomb 1966. Gallager and van Voorhis 1975.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled

_ONE = np.uint64(1)


@compiled
def _count_bits(positions: NDArray[np.int64], m: int, low: int, cut: int) -> int:
    """Count the bits of the code of these positions."""
    bits = 0
    last = -1
    for i in range(positions.size):
        gap = positions[i] - last - 1
        last = positions[i]
        bits += gap // m + 1 + low + (1 if gap % m >= cut else 0)
    return bits


@compiled
def _write_code(positions: NDArray[np.int64], m: int, low: int, cut: int, out: NDArray[np.uint8]) -> None:
    """Write the code of these positions to ``out``."""
    acc = np.uint64(0)  # Bits not yet written. Between two steps they are fewer than 8.
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
        have += 1  # A zero ends the unary part.
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


def _truncated_binary(m: int) -> tuple[int, int]:
    """Compute, for remainders below m, the bits of the short ones and their number. The others have one bit more."""
    width = (m - 1).bit_length()
    return max(0, width - 1), (1 << width) - m if m > 1 else 1


def golomb_encode(positions: NDArray[np.int64], m: int) -> bytes:
    """Encode gaps between strictly increasing positions.

    The quotient by m is unary (ones, then a zero). The remainder is truncated binary (its last bit last). m: 1 to 2^40.
    """
    low, cut = _truncated_binary(m)
    out = np.zeros((_count_bits(positions, m, low, cut) + 7) // 8, np.uint8)
    _write_code(positions, m, low, cut, out)
    return out.tobytes()


@compiled
def _read_code(data: NDArray[np.uint8], m: int, low: int, cut: int, universe: int, out: NDArray[np.int64]) -> int:
    """Read positions from a code, strictly. Returns whether it was one."""
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
    spare = have & 7  # unused bits of the last byte that was started
    if acc & ((_ONE << np.uint64(spare)) - _ONE):
        return -1
    return byte - have // 8


def golomb_decode(data: NDArray[np.uint8], m: int, universe: int, out: NDArray[np.int64]) -> int:
    """Fill ``out`` with positions. Return the bytes read, or -1 for invalid data. Time is linear in the bytes read.

    Data are invalid if they end too early, leave [0, universe), or pad with ones.
    """
    low, cut = _truncated_binary(m)
    return int(_read_code(data, m, low, cut, universe, out))
