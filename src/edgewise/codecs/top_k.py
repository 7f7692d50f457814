"""The k largest coordinates of this device's update, with their positions."""

from __future__ import annotations

import numpy as np

from edgewise.core import demand
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.space import Space
from edgewise.core.stage import Memory, Payload, Stage


def top_k(fraction: float) -> Stage:
    """Send the ``k = max(1, round(fraction d))`` coordinates of largest magnitude and where they are.

    Algebra: a projection, so l2 and linf stay; biased (use ``feedback``); positions differ per device, so not summable
    and the positions themselves say something about the data.
    Guarantees: exactly k coordinates; equal magnitudes go to the lowest positions; positions strictly increase.
    Decoding leaves the contribution sparse, so that a visible sum costs time by what was sent, not by d.
    Edge cases: a zero vector sends zeros at positions 0..k-1.
    Args:
        fraction: share of coordinates, above 0, at most 1.
    Raises:
        RecipeError(E-VALUE); CompositionError(E-SPARSE-TWICE, E-NOT-REAL).
    Source: Aji and Heafield 2017, arXiv:1704.05021; ||x - top_k(x)||^2 <= (1 - k/d) ||x||^2.
    """
    name = f"top_k({fraction:g})"
    demand.positive("top_k: fraction", fraction, 1.0)

    def size(space: Space) -> int:
        return min(space.dim, max(1, round(fraction * space.dim)))

    def infer(space: Space) -> Space:
        demand.real(space, name)
        if space.sparse:
            raise CompositionError(
                "E-SPARSE-TWICE", f"{name}: an earlier stage already chose a per-device support.", "keep one of them."
            )
        k = size(space)
        return space.but(
            dim=k, universe=space.dim, sparse=True, summable=False, unbiased=space.unbiased and k == space.dim
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        k = size(space)
        magnitude = np.abs(payload.body)
        if k == 0:
            return payload.but(support=np.zeros(0, np.int64)), memory
        threshold = np.partition(magnitude, space.dim - k)[space.dim - k]
        above = np.flatnonzero(magnitude > threshold)
        level = np.flatnonzero(magnitude == threshold)[: k - above.size]
        support = np.sort(np.concatenate([above, level])).astype(np.int64)
        return payload.but(body=payload.body[support], support=support), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    return Stage(name, infer, encode, decode, sparse=True)
