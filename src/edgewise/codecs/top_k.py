"""The k largest coordinates of this device's update, with their positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.kernels import compiled
from edgewise.core import demand
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.space import Space
from edgewise.core.stage import Memory, Payload, Stage

CHUNK_MAX = 2**24


@compiled
def _at_least(
    magnitude: NDArray[np.float32], chunk: int, k: int, limits: NDArray[np.float32], first: int, out: NDArray[np.int64]
) -> None:
    """Positions of the k magnitudes of each chunk that reach its limit, the k-th largest; of equal ones the lowest."""
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


def _largest(x: NDArray[np.float32], chunk: int, k: int, k_rest: int) -> NDArray[np.int64]:
    magnitude = np.abs(x)
    whole = x.size // chunk * chunk if chunk else 0
    support = np.empty(whole // chunk * k + k_rest if chunk else 0, np.int64)
    if whole:
        limits = np.partition(magnitude[:whole].reshape(-1, chunk), chunk - k, axis=1)[:, chunk - k]
        _at_least(magnitude[:whole], chunk, k, np.ascontiguousarray(limits), 0, support)
    if k_rest:
        rest = magnitude[whole:]
        limits = np.partition(rest, rest.size - k_rest)[[rest.size - k_rest]]
        _at_least(rest, rest.size, k_rest, limits, whole, support[support.size - k_rest :])
    return support


def top_k(fraction: float, chunk: int = 0) -> Stage:
    """Send the ``k = max(1, round(fraction d))`` coordinates of largest magnitude and where they are.

    ``chunk`` > 0: instead the ``max(1, round(fraction c))`` largest of every c = chunk consecutive coordinates (fewer
    in a last, shorter chunk). Every part of the model then sends its share; selection needs one chunk at a time; and
    where few of a chunk travel, positions inside it take fewer bits than a Golomb code.

    Algebra: a projection, so l2 and linf stay; biased (use ``feedback``); positions differ per device, so not summable
    and the positions themselves say something about the data.
    Guarantees: exactly k coordinates (of every chunk); equal magnitudes go to the lowest positions; positions strictly
    increase.
    Decoding leaves the contribution sparse, so that a visible sum costs time by what was sent, not by d.
    Edge cases: a zero vector sends zeros at positions 0..k-1.
    Args:
        fraction: share of coordinates, above 0, at most 1. chunk: 0 (the whole vector is one), or 2 to 2^24.
    Raises:
        RecipeError(E-VALUE); CompositionError(E-SPARSE-TWICE, E-NOT-REAL).
    Source: Aji and Heafield 2017, arXiv:1704.05021; ||x - top_k(x)||^2 <= (1 - k/d) ||x||^2.
        Chunks: Sarfi et al. 2025 (SparseLoCo), arXiv:2508.15706, with c = 4096.
    """
    name = f"top_k({fraction:g}, chunk {chunk})" if chunk else f"top_k({fraction:g})"
    demand.positive("top_k: fraction", fraction, 1.0)
    if chunk:
        demand.between("top_k: chunk", chunk, 2, CHUNK_MAX)

    def share(n: int) -> int:
        return min(n, max(1, round(fraction * n)))

    def sizes(space: Space) -> tuple[int, int, int]:
        """Length of whole chunks, coordinates kept of each, coordinates kept of the rest."""
        length = chunk or space.dim
        return length, share(length), share(space.dim % length) if length else 0

    def infer(space: Space) -> Space:
        demand.real(space, name)
        if space.sparse:
            raise CompositionError(
                "E-SPARSE-TWICE", f"{name}: an earlier stage already chose a per-device support.", "keep one of them."
            )
        length, k, k_rest = sizes(space)
        kept = (space.dim // length if length else 0) * k + k_rest
        return space.but(
            dim=kept,
            universe=space.dim,
            sparse=True,
            summable=False,
            unbiased=space.unbiased and kept == space.dim,
            chunk=chunk,
            chunk_k=k if chunk else 0,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        support = _largest(payload.body, *sizes(space))
        return payload.but(body=payload.body[support], support=support), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    return Stage(name, infer, encode, decode, sparse=True)
