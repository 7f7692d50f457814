"""Random rotation that all devices of a round share, so that no coordinate stands out afterwards."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.errors import CompositionError, RecipeError, TrainingError
from edgewise.core.keys import Key, Turn, derive, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Rotation, Space
from edgewise.core.stage import Stage
from edgewise.kernels.hashing import hash_word

BLOCK = 2**15  # 128 KB of float32 stay in a core's cache.
SHORTEST = 64  # A shorter block would not look normal. It is joined to the one before it.
_MOST = float(np.finfo(np.float32).max)
_LIFT = 2.0**40  # Blocks near the ends of float32's range are transformed this many times smaller, or larger.
# Bits of 2^100 and 2^-80. Sums of 2^20 such values are far from overflow, and their last bits far from the denormals.
_HIGH, _LOW = np.int32((127 + 100) << 23), np.int32((127 - 80) << 23)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


def rotation_block_edges(dim: int, block: int) -> NDArray[np.int64]:
    """Compute the edges of the rotation's blocks, int64[n + 1]. Block i is [e_i, e_i+1).

    Whole blocks come first, then the rest. A rest of fewer than 64 coordinates is joined to the last whole block, if
    there is one.
    """
    full, rest = divmod(dim, block)
    if rest and (rest >= SHORTEST or not full):
        return np.append(np.arange(full + 1) * block, dim).astype(np.int64)
    ends = np.arange(full + 1, dtype=np.int64) * block
    ends[-1] = dim
    return ends


@compiled
def _flip_signs(x: NDArray[np.float32], first: int, seed: np.uint64) -> None:
    """Flip random signs in place, 64 per SplitMix64 word.

    ``first``: position of x[0] in the vector, a multiple of 64.
    """
    plus, minus = np.float32(1.0), np.float32(-1.0)
    for w in range((x.size + 63) // 64):
        flips = hash_word(seed, first // 64 + w)
        part = x[64 * w : 64 * w + 64]
        for j in range(part.size):
            part[j] *= plus if (flips >> np.uint64(j)) & _ONE == _ZERO else minus


@compiled
def _walsh_hadamard(x: NDArray[np.float32]) -> None:
    """Compute the unnormalised Walsh-Hadamard transform in place, with three levels in registers, then two per pass.

    x.size is a power of two, 8 or more.
    """
    n = x.size
    for i in range(0, n, 8):
        a0, a1, a2, a3 = x[i] + x[i + 1], x[i] - x[i + 1], x[i + 2] + x[i + 3], x[i + 2] - x[i + 3]
        a4, a5, a6, a7 = x[i + 4] + x[i + 5], x[i + 4] - x[i + 5], x[i + 6] + x[i + 7], x[i + 6] - x[i + 7]
        b0, b1, b2, b3 = a0 + a2, a1 + a3, a0 - a2, a1 - a3
        b4, b5, b6, b7 = a4 + a6, a5 + a7, a4 - a6, a5 - a7
        x[i], x[i + 1], x[i + 2], x[i + 3] = b0 + b4, b1 + b5, b2 + b6, b3 + b7
        x[i + 4], x[i + 5], x[i + 6], x[i + 7] = b0 - b4, b1 - b5, b2 - b6, b3 - b7
    h = 8
    while 4 * h <= n:
        for i in range(0, n, 4 * h):
            p, q = x[i : i + h], x[i + h : i + 2 * h]
            r, s = x[i + 2 * h : i + 3 * h], x[i + 3 * h : i + 4 * h]
            for j in range(h):
                a, b, c, d = p[j] + q[j], p[j] - q[j], r[j] + s[j], r[j] - s[j]
                p[j], q[j], r[j], s[j] = a + c, b + d, a - c, b - d
        h *= 4
    if h < n:
        p, q = x[:h], x[h:]
        for j in range(h):
            a, b = p[j] + q[j], p[j] - q[j]
            p[j], q[j] = a, b


@compiled
def _rotate_blocks(
    x: NDArray[np.float32], block: int, scale: float, seed: np.uint64, forward: bool, out: NDArray[np.float32]
) -> bool:
    """Rotate all whole blocks. Return False if a coordinate exceeded float32's range and was cut to it."""
    in_range = True
    for at in range(0, x.size, block):
        source, target = x[at : at + block], out[at : at + block]
        bits, peak = source.view(np.int32), np.int32(0)  # Magnitudes are ordered like their bits, which compare faster.
        for i in range(block):
            peak = max(peak, bits[i] & np.int32(0x7FFFFFFF))
        lift = 1.0
        if peak >= _HIGH:
            lift = 1.0 / _LIFT
        elif peak < _LOW:
            lift = _LIFT
        factor = np.float32(scale * lift)
        for i in range(block):
            target[i] = source[i] * factor
        if forward:
            _flip_signs(target, at, seed)
        _walsh_hadamard(target)
        if not forward:
            _flip_signs(target, at, seed)
        if lift != 1.0:
            for i in range(block):
                y = np.float64(target[i]) / lift
                in_range = in_range and bool(abs(y) <= _MOST)
                target[i] = np.float32(min(max(y, -_MOST), _MOST))
    return in_range


def hartley(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the orthonormal discrete Hartley transform, its own inverse, of any length n.

        sum_j x_j cas(2 pi j k / n) / sqrt(n),  cas = cos + sin

    Source: Bracewell 1983.
    """
    n = x.size
    half = np.fft.rfft(x)
    out = np.empty(n)
    out[: half.size] = half.real - half.imag
    mirrored = np.arange(half.size, n)
    out[half.size :] = half.real[n - mirrored] + half.imag[n - mirrored]
    return out / sqrt(n)


@lru_cache(maxsize=2)
def _tail_signs(seed: int, first: int, n: int) -> NDArray[np.float32]:
    signs = np.ones(n, np.float32)
    _flip_signs(signs, first, np.uint64(seed))
    signs.setflags(write=False)
    return signs


def rotated(x: NDArray[np.float32], block: int, key: Key, forward: bool) -> tuple[NDArray[np.float32], bool]:
    """Rotate ``x``, or undo the rotation. Also return True if all coordinates stayed within float32's range."""
    seed, ends, out = word(key), rotation_block_edges(x.size, block), np.empty_like(x)
    last = int(ends[-2]) if ends.size > 1 and ends[-1] - ends[-2] != block else x.size
    scale = _rounding_slack(block) / sqrt(block)
    in_range = bool(_rotate_blocks(x[:last], block, scale, np.uint64(seed), forward, out[:last]))
    if last < x.size:
        signs = _tail_signs(seed, last, x.size - last)
        tail = x[last:].astype(np.float64)
        tail = (hartley(tail * signs) if forward else hartley(tail) * signs) * _rounding_slack(block)
        in_range &= bool((np.abs(tail) <= _MOST).all())
        out[last:] = np.clip(tail, -_MOST, _MOST)
    return out, in_range


def _rounding_slack(block: int) -> float:
    """Compute the factor that offsets the lengthening by float32 rounding.

    It shortens by 2^-24 per level of the transform, and for the scale and its product.
    """
    return 1.0 - (block.bit_length() + 1) * 2.0**-24


@part
def rotate(
    block: Annotated[int, Ge(SHORTEST), Le(2**20), Doc("coordinates that are mixed together; a power of two")] = BLOCK,
) -> Stage:
    """Rotate the update at random, the same on all devices of a round, so that no coordinate stands out afterwards.

    A Hadamard transform in blocks: ``y = H D x / sqrt(B)``, with D random signs from the round's public key. The rest
    behind the last whole block is rotated by a Hartley transform of its own length (orthonormal for every length, also
    with random signs), so nothing is padded. A rest of fewer than 64 coordinates is joined to the last whole block,
    which then is a Hartley block too.

    Algebra: orthonormal and linear, so summable, unbiased and l2 stay. linf -> min(l2, linf sqrt(B)), and decoding may
    enlarge a coordinate as much (``spread``). ``moving``: the meaning of a coordinate changes every round, so no later
    stage may keep memory per position. The rotation evens out magnitudes. After it a coordinate of a block of norm r is
    near normal with standard deviation r / sqrt(B), unless a few coordinates hold most of r.
    Guarantees: equal signs on all devices of a round and on every platform. Neither direction lengthens a vector. Both
    shorten it by (log2 B + 2) 2^-24, more than float32 rounding can add.
    Edge cases: decoded coordinates beyond float32's range are cut to it. Zero stays zero. A single coordinate keeps its
    magnitude.
    Args:
        block: B, a power of two, 64 to 2^20.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL after a quantizer. E-ORDER after a per-device support or another rotation.
        TrainingError: E-RANGE if a rotated coordinate overflows float32.
    Source: Ailon and Chazelle 2009 (fast Johnson-Lindenstrauss). Suresh et al. 2017, arXiv:1611.00429, section 3.
    """
    name = f"rotate({block})"
    if block & (block - 1):
        raise RecipeError("E-VALUE", f"rotate: block is {block!r}, must be a power of two.", "use 32768.")

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse:
            raise CompositionError(
                "E-ORDER",
                f"{name}: an earlier stage chose a per-device support (top_k).",
                f'put {name} first. grid = "eden" cannot follow top_k in either order, so use grid = "pair" after '
                "top_k, or random_k or shared_top_k before rotate.",
            )
        if space.rotated:
            raise CompositionError("E-ORDER", f"{name}: the update is already rotated.", "keep one rotate stage.")
        lengths = np.diff(rotation_block_edges(space.dim, block))
        longest = sqrt(max(1, int(lengths.max(initial=0))))
        return space.but(
            linf=min(space.l2, space.linf * longest),
            spread=space.spread * longest,
            rotation=Rotation(block, space.dim, int(lengths.min(initial=space.dim))),
            moving=True,
        )

    def key(turn: Turn) -> Key:
        return derive(turn.public, "rotate", turn.round)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        body, in_range = rotated(payload.body, block, key(turn), True)
        if not in_range:
            raise TrainingError("E-RANGE", f"{name}: a rotated coordinate overflows float32.", "clip before it.")
        return payload.but(body=body), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload.but(body=rotated(payload.body, block, key(turn), False)[0])

    def says(before: Space, after: Space) -> str:
        return f"rotates runs of {block} coordinates at random, the same on all devices of a round"

    return Stage(name, infer, encode, decode, says)
