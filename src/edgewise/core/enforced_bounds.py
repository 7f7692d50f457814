"""Enforce a plan's bounds on a single contribution, where the server sees one.

    square = enforce_bounds(item, pipe.encoded, pipe.released_head)

A visible merge does so for every contribution, whether the device is honest or not. A blind merge cannot.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt

import numpy as np

from edgewise.core.errors import DecodeError
from edgewise.core.payload import Payload
from edgewise.core.space import SLACK, Space
from edgewise.core.stage import BELOW, WEIGHT


def enforce_bounds(item: Payload, bounds: Space, released_head: Sequence[str], square: float = 0.0) -> float:
    """Refuse a contribution that exceeds the bounds. Return the squared norm of all pieces so far.

    Args:
        item: the decoded contribution, or a piece of it.
        bounds: the space that the plan promises for an encoded contribution. Its norms hold for the decoded one.
        released_head: the names of the scalars of the decoded contribution, in order (``Pipeline.released_head``).
        square: the squared norm of the earlier pieces.
    Raises:
        DecodeError: E-RANGE above the norm bounds, or for head values that no honest device sends.
    Edge cases: an infinite bound refuses nothing. NaN is above every finite bound of the norm.
    """
    slack = 1.0 + SLACK
    if isfinite(bounds.l2):
        square += float(np.square(item.body, dtype=np.float64).sum())
        if not sqrt(square) <= bounds.l2 * slack:
            raise DecodeError("E-RANGE", f"an update is longer than its bound of {bounds.l2:g}.")
    if isfinite(bounds.peak) and item.body.size and float(np.abs(item.body).max()) > bounds.peak * slack:
        raise DecodeError("E-RANGE", f"a coordinate is above its bound of {bounds.peak:g}.")
    decoded = dict(zip(released_head, item.head.tolist(), strict=True))
    head = {name: decoded[name] for name in bounds.head}  # Noise is on the others, so nothing bounds them.
    weight = head.pop(WEIGHT, 1.0)
    head.pop(BELOW, None)  # Its norm bounds it already (``codecs.wire.pack``).
    if not (0.0 <= weight <= 1.0 and all(0.0 <= v <= bounds.head_bound * weight * slack for v in head.values())):
        raise DecodeError("E-RANGE", "a weight or a metric is outside its bounds.")
    return square
