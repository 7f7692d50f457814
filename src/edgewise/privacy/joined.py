"""Metrics as coordinates behind an update, so that one noise of the device covers both.

    y = (x, h),   ||y||_2 <= sqrt(C^2 + ||h||_2^2)         on the device, after the clip of x to C
    x = y[:d],  h = y[d:]                                  of the decoded sum

The bound of the metrics is a part of the bound that the noise is sized by, so they cost no epsilon of their own. The
noise grows with the bound (``plan.metrics.SHARE``).

>>> import numpy as np
>>> from edgewise.core.keys import Turn, root
>>> from edgewise.core.memory import Memory
>>> from edgewise.core.payload import Payload
>>> from edgewise.core.space import Quorum, Space
>>> space = Space(dim=2, quorum=Quorum(1, 1), head=("loss",), head_l2=0.5, head_bound=0.5)
>>> update = Payload(np.ones(2, np.float32), np.array([0.25]))
>>> sent, _ = noised_metrics().encode(update, Memory(), space, Turn(0, root(1)))
>>> sent.body.tolist(), sent.head.tolist()
([1.0, 1.0, 0.25], [])
"""

from __future__ import annotations

from math import hypot

import numpy as np
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import WEIGHT, Stage


def noised_metrics() -> Stage:
    """Put the head of an update behind its body. Decoding takes it out again.

    Algebra: dim -> d + k, l2 -> sqrt(l2^2 + head_l2^2), linf -> max(linf, head_bound), no head.
    Guarantees: linear, so the decoded sum has the sums of body and head. No value grows by the conversion to float32.
        A head of zeros stays zero.
    Raises: CompositionError (when folded): E-NOT-REAL after a quantizer; E-ORDER where each device chooses positions;
        E-WEIGHT with a weight in the head, because the divisor of the mean would be a noised sum.
    """
    name = "joined_metrics"

    def infer(space: Space) -> Space:
        require.real(space, name)
        if WEIGHT in space.head:
            raise CompositionError(
                "E-WEIGHT",
                f"{name}: the mean would be divided by a sum of weights with noise, which may be near zero.",
                "leave out weigh: then all devices count the same and the divisor is their number.",
            )
        if space.sparse:
            raise CompositionError("E-ORDER", f"{name}: positions point into the update alone.", "use random_k.")
        return space.but(
            dim=space.dim + len(space.head),
            l2=hypot(space.l2, space.head_l2),
            linf=max(space.linf, space.head_bound),
            head=(),
            head_l2=0.0,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        return payload.but(body=np.concatenate([payload.body, _toward_zero(payload.head)]), head=np.zeros(0)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload.but(body=payload.body[: space.dim], head=payload.body[space.dim :].astype(np.float64))

    def says(before: Space, after: Space) -> str:
        return f"puts {' and '.join(before.head)} behind the update, so that one noise covers all"

    return Stage(name, infer, encode, decode, says)


def _toward_zero(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round to float32 so that no magnitude grows."""
    near = values.astype(np.float32)
    return np.where(np.abs(near) > np.abs(values), np.nextafter(near, np.float32(0.0)), near)
