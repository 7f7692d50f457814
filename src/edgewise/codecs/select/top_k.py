"""Largest coordinates of this device's update, with their positions."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space, Support
from edgewise.core.stage import Read, Stage, keeps
from edgewise.kernels.magnitudes import gather_magnitudes

_PART = 1 << 15  # coordinates read at a time
_SAMPLES, _SAMPLE = 256, 256  # number of the vector's stretches that are sampled first, and their length


def top_k_positions(read: Read, dim: int, k: int) -> NDArray[np.int64]:
    """Find the positions of the k largest magnitudes, in increasing order.

    Take the lowest of equal positions at the edge.

    A sample guesses a magnitude somewhat below the k-th largest. One pass collects all coordinates from that magnitude
    on. Whenever the room for 2 k + 4096 candidates is used up, the k largest of them stay, and the guess rises above
    the smallest of these. If the guess was too high, a second pass starts from 0. So the result is exact whatever the
    sample says. O(dim) time, O(k) memory.

    Args:
        read: start, stop -> float32, finite.
        dim: length of the vector.
        k: 0 to dim.
    """
    if k == 0:
        return np.zeros(0, np.int64)
    where = _collect_largest(read, dim, k, _guess_floor(read, dim, k))
    return where if where.size == k else _collect_largest(read, dim, k, 0)


def _guess_floor(read: Read, dim: int, k: int) -> int:
    """Guess a magnitude, as bits of a float32, that about 1.2 k coordinates reach.

    Return 0 if a sample would not pay.
    """
    sampled = _SAMPLES * _SAMPLE
    hits = sampled * k / dim
    rank = ceil(1.2 * hits + 4.0 * sqrt(hits) + 8.0)
    if dim < 4 * sampled or rank >= sampled:
        return 0
    starts = [i * (dim - _SAMPLE) // (_SAMPLES - 1) for i in range(_SAMPLES)]
    bits = np.concatenate([read(i, i + _SAMPLE) for i in starts]).view(np.int32) & np.int32(0x7FFFFFFF)
    return int(np.partition(bits, sampled - rank)[sampled - rank])


def _collect_largest(read: Read, dim: int, k: int, floor: int) -> NDArray[np.int64]:
    """Collect the k largest of the coordinates that are not below ``floor``, or all of them if there are fewer."""
    room = min(dim, 2 * k + 4096)
    where, size, have = np.empty(room, np.int64), np.empty(room, np.int32), 0
    for start in range(0, dim, _PART):
        bits, at = read(start, min(dim, start + _PART)).view(np.int32), 0
        while True:
            used, have = gather_magnitudes(bits[at:], start + at, floor, where, size, have)
            at += used
            if at == bits.size:
                break
            floor, have = _keep_largest(where, size, have, k) + 1, k  # Of equal magnitudes, the earlier positions win.
    if have > k:
        _keep_largest(where, size, have, k)
    return where[: min(have, k)].copy()


def _keep_largest(where: NDArray[np.int64], size: NDArray[np.int32], have: int, k: int) -> int:
    """Move the k largest of ``have`` entries to the front, in order. Return the smallest of them."""
    sizes = size[:have]
    edge = np.partition(sizes, have - k)[have - k]
    chosen = sizes > edge
    chosen[np.flatnonzero(sizes == edge)[: k - np.count_nonzero(chosen)]] = True
    where[:k], size[:k] = where[:have][chosen], sizes[chosen]
    return int(edge)


@compiled
def _at_least(
    magnitude: NDArray[np.float32], chunk: int, k: int, limits: NDArray[np.float32], first: int, out: NDArray[np.int64]
) -> None:
    """Find the k positions of each chunk whose magnitudes reach its limit, the k-th largest.

    Take the lowest of equal positions.
    """
    for c in range(limits.size):
        part, limit = magnitude[c * chunk : (c + 1) * chunk], limits[c]
        level = k
        for v in part:
            level -= 1 if v > limit else 0
        at = c * k
        for i in range(part.size):
            take = part[i] > limit
            if part[i] == limit and level > 0:
                take = True
                level -= 1
            if take:
                out[at] = first + c * chunk + i
                at += 1


def _largest_of_chunks(read: Read, dim: int, chunk: int, k: int, k_rest: int) -> NDArray[np.int64]:
    """Find the k largest of each whole chunk, and the ``k_rest`` largest of the rest behind them. As
    ``top_k_positions``."""
    step = max(1, _PART // chunk) * chunk
    parts = [np.zeros(0, np.int64)]
    for start in range(0, dim, step):
        magnitude = np.abs(read(start, min(dim, start + step)))
        whole = magnitude.size // chunk
        rest = magnitude[whole * chunk :]
        support = np.empty(whole * k + (k_rest if rest.size else 0), np.int64)
        if whole:
            limits = np.partition(magnitude[: whole * chunk].reshape(-1, chunk), chunk - k, axis=1)[:, chunk - k]
            _at_least(magnitude[: whole * chunk], chunk, k, np.ascontiguousarray(limits), start, support)
        if rest.size:
            limits = np.partition(rest, rest.size - k_rest)[[rest.size - k_rest]]
            _at_least(rest, rest.size, k_rest, limits, start + whole * chunk, support[whole * k :])
        parts.append(support)
    return np.concatenate(parts)


@part
def top_k(
    fraction: Annotated[float, Gt(0), Le(1), Doc("share of the coordinates that travels")],
    chunk: Annotated[int, Ge(0), Le(2**24), Doc("choose in each run of this many coordinates; 0 = in all of them")] = 0,
) -> Stage:
    """Send each device's largest coordinates, and their positions.

    These are the ``k = max(1, round(fraction d))`` coordinates of largest magnitude. With ``chunk`` > 0 they are
    instead the ``max(1, round(fraction c))`` largest of every c = chunk consecutive coordinates (fewer in a last,
    shorter chunk). Every part of the model then sends its share, and selection needs one chunk at a time. If few of a
    chunk travel, positions inside it take fewer bits than a Golomb code.

    Algebra: a projection, so l2 and linf stay. Biased (use ``feedback``). Positions differ per device, so not summable,
    and the positions themselves reveal something about the data.
    Guarantees: exactly k coordinates (of every chunk). Of equal magnitudes the lowest positions are sent. Positions
    strictly increase. Decoding leaves the contribution sparse, so the time of a visible sum grows with the coordinates
    sent, not with d.
    Edge cases: a zero vector sends zeros at positions 0..k-1.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-SPARSE-TWICE, E-NOT-REAL.
    Source: Aji and Heafield 2017, arXiv:1704.05021. ||x - top_k(x)||^2 <= (1 - k/d) ||x||^2. Chunks: Sarfi et al. 2025
    (SparseLoCo), arXiv:2508.15706, with c = 4096.
    """
    name = f"top_k({fraction:g}, chunk {chunk})" if chunk else f"top_k({fraction:g})"
    if chunk == 1:
        raise RecipeError("E-VALUE", "top_k: a chunk of 1 leaves nothing to choose.", "use 4096, or leave it out.")

    def share(n: int) -> int:
        return min(n, max(1, round(fraction * n)))

    def sizes(space: Space) -> tuple[int, int, int]:
        """Length of whole chunks, coordinates kept of each, and coordinates kept of the rest."""
        length = chunk or space.dim
        return length, share(length), share(space.dim % length) if length else 0

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse:
            raise CompositionError(
                "E-SPARSE-TWICE", f"{name}: an earlier stage already chose a per-device support.", "keep one of them."
            )
        length, k, k_rest = sizes(space)
        coordinates = (space.dim // length if length else 0) * k + k_rest
        return space.but(
            dim=coordinates,
            support=Support(space.dim, chunk, k if chunk else 0),
            summable=False,
            unbiased=space.unbiased and coordinates == space.dim,
        )

    def pick(read: Read, space: Space) -> NDArray[np.int64]:
        length, k, k_rest = sizes(space)
        return _largest_of_chunks(read, space.dim, length, k, k_rest) if chunk else top_k_positions(read, space.dim, k)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        body = np.ascontiguousarray(payload.body)
        support = pick(lambda start, stop: body[start:stop], space)
        return payload.but(body=body[support], support=support), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    def says(before: Space, after: Space) -> str:
        return f"{keeps(before, after)}, the largest, and sends their positions"

    return Stage(name, infer, encode, decode, says, takes_support=True, pick=pick)
