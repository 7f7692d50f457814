"""An extension stage that needs ``Turn.support``: it sends the coordinates where the last release was largest.

Before the first release it sends the first ones. What it met is kept in ``SEEN`` for tests in one process.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from edgewise.core.keys import Turn
from edgewise.core.space import Space
from edgewise.core.stage import Memory, Payload, Stage
from edgewise.core.vector import Array
from edgewise.plan.catalogue import Entry, Extension
from edgewise.plan.params import Params

SEEN: list[tuple[str, int, tuple[int, ...]]] = []  # (side, round, positions)


class ToldParams(Params):
    """As many positions."""

    k: int = Field(gt=0)


def told(k: int) -> Stage:
    def positions(side: str, turn: Turn) -> Array:
        assert turn.support is not None
        SEEN.append((side, turn.round, tuple(turn.support.tolist())))
        return turn.support if turn.support.size else np.arange(k)

    def infer(space: Space) -> Space:
        return space.but(dim=k, universe=k, moving=True, support=k)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=payload.body[positions("device", turn)]), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        x = np.zeros(space.dim, np.float32)
        x[positions("server", turn)] = payload.body
        return payload.but(body=x)

    return Stage(f"told({k})", infer, encode, decode)


EDGEWISE = Extension(stages={"told": Entry(ToldParams, lambda p, _: told(p.k))})
