"""An extension stage that needs ``Turn.support``: it sends the coordinates where the last release was largest.

Before the first release it sends the first ones. What it met is kept in ``SEEN`` for tests in one process.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt

from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Array
from edgewise.plan.catalogue import Extension

SEEN: list[tuple[str, int, tuple[int, ...]]] = []  # (side, round, positions)


@part
def told(k: Annotated[int, Gt(0)]) -> Stage:
    """Send ``k`` positions of the last release."""

    def positions(side: str, turn: Turn) -> Array:
        assert turn.support is not None
        SEEN.append((side, turn.round, tuple(turn.support.tolist())))
        return turn.support if turn.support.size else np.arange(k)

    def infer(space: Space) -> Space:
        return space.but(dim=k, moving=True, announced=k)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=payload.body[positions("device", turn)]), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        x = np.zeros(space.dim, np.float32)
        x[positions("server", turn)] = payload.body
        return payload.but(body=x)

    return Stage(f"told({k})", infer, encode, decode, lambda before, after: f"sends {k} positions of the last release")


EDGEWISE = Extension(parts=(told,))
