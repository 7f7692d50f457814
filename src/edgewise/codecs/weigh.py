"""Weights of contributions by their amount of data, with a cap, so that one device cannot dominate the mean."""

from __future__ import annotations

from math import hypot, isnan
from typing import Annotated

import numpy as np
from annotated_types import Gt, Le

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import WEIGHT, Stage

CAP = 65536.0  # tokens, by default
CAP_MAX = 2.0**24  # A contribution of one token still keeps 16 bits of a 2^-40 fixed-point sum.


@part
def weigh(
    cap: Annotated[float, Gt(0), Le(CAP_MAX), Doc("tokens above which a device counts no more")] = CAP,
) -> Stage:
    """Weight contributions by their amount of training tokens, w = min(tokens, cap) / cap.

    Body and head are multiplied by w, and w travels as one more exact scalar. The sum of ``w x`` is divided by the sum
    of ``w`` as the very last step (``Pipeline.release``), so the result is ``sum min(n_i, cap) x_i / sum min(n_i,
    cap)``.

    Algebra: w <= 1, so l2 and linf stay and head_l2 -> sqrt(head_l2^2 + 1). Decoding keeps ``w x``.
    Guarantees: no coordinate grows.
    Edge cases: count 0 gives w = 0 (a contribution that changes nothing).
    Args:
        cap: the count from which more data adds no more weight. Finite, above 0.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-ORDER (weighed twice), E-NOT-REAL (after a quantizer).
    Source: McMahan et al. 2018, arXiv:1710.06963, section 3 (w_k = min(n_k / cap, 1)).
    """
    name = f"weigh({cap:g})"

    def infer(space: Space) -> Space:
        require.real(space, name)
        if WEIGHT in space.head:
            raise CompositionError("E-ORDER", f"{name}: the update is already weighed.", "keep one weigh stage.")
        return space.but(head=(*space.head, WEIGHT), head_l2=hypot(space.head_l2, 1.0))

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        if isnan(payload.count) or payload.count < 0:
            raise ValueError(f"count of a contribution is {payload.count}, must be >= 0")
        w = min(payload.count, cap) / cap
        body = payload.body if w == 1.0 else payload.body * np.float32(w)
        return payload.but(body=body, head=np.append(payload.head * w, w)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    def says(before: Space, after: Space) -> str:
        return "multiplies by the device's weight, which travels as an exact scalar"

    return Stage(name, infer, encode, decode, says, takes_support=True, pointwise=True)
