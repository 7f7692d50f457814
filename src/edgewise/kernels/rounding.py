"""Rounding of vectors to grids without bias, and its inverse. Each coordinate uses one random word, from its index."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled
from edgewise.kernels.hashing import fill_hash_words, hashed_uniform
from edgewise.kernels.magnitudes import MAGNITUDE, largest_magnitude

RUN = 2048  # coordinates at a time, which stay in the first-level cache: 8 KiB of float32, 8 KiB of random words


@compiled
def _round_run(x: NDArray[np.float32], half: NDArray[np.int32], inverse: float, top: float, out: NDArray[Any]) -> None:
    for i in range(x.size):
        # A signed half word h stands for h 2^-32 + 1/2 + 2^-33, the middle of its interval. The mean is exactly 1/2.
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
    """Round x[start:stop]. ``words`` holds the randomness of the run that begins at ``have``.

    Returns:
        The start of the run whose randomness ``words`` holds afterwards.
    """
    halves = words.view(np.int32)
    while start < stop:
        run = start // RUN * RUN  # Runs begin at fixed positions, independent of the blocks.
        if run != have:
            fill_hash_words(seed, run // 2, words)
            have = run
        now = min(stop, run + RUN)
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
    """Round to levels: floor(x_i * inverse_b + u_i), cut to +-level_max.

    There is one ``inverse`` (levels per unit) per ``block`` coordinates. u_i = (h + 1/2) 2^-32, with h the low (even i)
    or high half of word i // 2 of the stream. The probability of rounding up equals the fraction to within 2^-33 of a
    step, far below the rounding of a float32 x itself. Zero stays zero.
    """
    words, have = np.empty(RUN // 2, np.uint64), -1
    for b in range(inverse.size):
        stop = min(x.size, (b + 1) * block)
        have = _round_span(x, b * block, stop, inverse[b], np.float64(level_max), seed, words, have, out)


@compiled
def round_blocks(
    x: NDArray[np.float32], block: int, level_max: int, seed: np.uint64, out: NDArray[Any]
) -> NDArray[np.float32]:
    """Round to levels as ``round_levels`` does, with a scale found for each block while it is in the cache.

    A scale is the block's largest magnitude rounded up to bfloat16, at most the largest finite one. Below 2^-126 the
    scale and the levels are 0. inverse = level_max / scale.

    Returns:
        The scales.
    """
    scales = np.zeros((x.size + block - 1) // block, np.float32)
    bits, as_bits = x.view(np.int32), scales.view(np.int32)
    words, have, top = np.empty(RUN // 2, np.uint64), -1, np.float64(level_max)
    for b in range(scales.size):
        start, stop = b * block, min(x.size, (b + 1) * block)
        m = np.int64(largest_magnitude(bits[start:stop]))
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
    """Draw 1 with probability (1 + x_i * inverse_b) / 2, else -1."""
    for b in range(inverse.size):
        inv = inverse[b]
        for i in range(b * block, min(x.size, (b + 1) * block)):
            out[i] = 1 if 2.0 * hashed_uniform(seed, i) < 1.0 + np.float64(x[i]) * inv else -1


@compiled
def unround(levels: NDArray[Any], step: NDArray[np.float64], block: int) -> NDArray[np.float32]:
    """Compute level * step_b in float64, rounded to float32."""
    out = np.empty(levels.size, np.float32)
    for b in range(step.size):
        start, stop = b * block, min(levels.size, (b + 1) * block)
        _unround_run(levels[start:stop], step[b], out[start:stop])
    return out


@compiled
def to_bfloat16(x: NDArray[np.float32], seed: np.uint64, out: NDArray[np.uint16]) -> None:
    """Round x to bfloat16 at random, in magnitude, without bias. Write the upper halves to ``out``.

    The magnitude is rounded up with the probability of the part that is cut off, but never to infinity. Quarter i mod 4
    of word i // 4 of the stream is added to the lower half, so the mean is x within 2^-17 of a step.
    """
    bits, words = x.view(np.int32), np.empty(RUN // 4, np.uint64)
    quarters = words.view(np.uint16)
    for start in range(0, x.size, RUN):
        fill_hash_words(seed, start // 4, words)
        now, to = bits[start : start + RUN], out[start : start + RUN]
        for i in range(now.size):
            m = min(np.uint32(now[i] & MAGNITUDE) + np.uint32(quarters[i]), np.uint32(0x7F7FFFFF))
            to[i] = np.uint16((m >> np.uint32(16)) | ((np.uint32(now[i]) >> np.uint32(16)) & np.uint32(0x8000)))


@compiled
def to_int8(
    x: NDArray[np.float32], block: int, seed: np.uint64, out: NDArray[np.int8], scales: NDArray[np.float32]
) -> None:
    """Round to +-127 levels as ``round_blocks`` does.

    The scale of a block is its largest magnitude itself, a float32.
    """
    bits, as_bits = x.view(np.int32), scales.view(np.int32)
    words, have = np.empty(RUN // 2, np.uint64), -1
    for b in range(scales.size):
        start, stop = b * block, min(x.size, (b + 1) * block)
        as_bits[b] = min(largest_magnitude(bits[start:stop]), np.int32(0x7F7FFFFF))
        inverse = 127.0 / np.float64(scales[b]) if scales[b] > 0 else 0.0
        have = _round_span(x, start, stop, inverse, 127.0, seed, words, have, out)
