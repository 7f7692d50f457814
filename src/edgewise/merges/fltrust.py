"""FLTrust: each update counts by its likeness to that of one device whose data the server's operator trusts."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from annotated_types import MinLen
from numpy.typing import NDArray

from edgewise.core.keys import Key
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.space import Total
from edgewise.core.stage import Merge, Rows
from edgewise.merges import robust
from edgewise.merges.seen import Seen, seen_merge


@part
def fltrust(
    root: Annotated[str, MinLen(1), Doc("name of the device that the server's operator runs, on root data")],
) -> Merge:
    """Weigh each update by its cosine to the update of a trusted device, and cut it to that one's length (FLTrust).

    With g_0 the update of ``root`` and g_i those of the others:

        w_i = max(0, cos(g_i, g_0))        g = sum_i w_i (|g_0| / |g_i|) g_i / sum_i w_i

    The server's operator runs the device ``root``, on a few hundred examples that it chose itself and that are like
    those of honest devices. Its update sets direction and length, and is not part of the mean.

    Each device counts the same, whatever its weight is. Metrics are the median of those of the other devices.
    Guarantees: |g| <= |g_0|, and g . g_0 >= 0, whatever any number of other devices send. So there need be no honest
        majority. The result is the same for every order of arrival.
    Edge cases: the model does not move in a round without an update of ``root``, with one of zeros, or in which no
        update points its way.
    Algebra: sensitivity inf, so no noise can be added to the result.
    Memory: 20 bytes for each coordinate of each contribution, on the server.
    Raises: CompositionError(E-BYZANTINE) for rounds that may have ``root`` alone.
    Source: Cao et al. 2021, arXiv:2012.13995, algorithm 2.

    Example: ``[merge] kind = "fltrust", root = "clinic-0"``.
    """

    def parts(acc: Seen) -> list[tuple[Any, int]]:
        """The root's update first. One of zeros stands for none."""
        absent = [(row.but(body=row.body * 0, head=row.head * 0), 0) for row in acc.rows[:1]]
        named = list(zip(acc.rows, acc.devices, strict=True))
        found = [(row, 1) for row, device in named if device == root]
        return [*(found or absent), *((row, 1) for row, device in named if device != root)]

    def combine(bodies: Rows, heads: Rows, memory: Memory, key: Key) -> tuple[Rows, Rows, Memory]:
        head = np.median(heads[1:], axis=0) if len(heads) > 1 else heads[0]
        return trusted_mean(bodies[0], robust.prepared(bodies[1:], 0, "none")), head, memory

    def says(total: Total) -> str:
        return f"takes their mean by their likeness to that of {root}, each cut to its length"

    return seen_merge(f"fltrust({root})", "a mean beside the root's update", None, 2, says, combine, parts=parts)


def trusted_mean(root: NDArray[np.float64], rows: Rows) -> Rows:
    """Compute FLTrust's mean of float64[n, d] around the root's update float64[d].

    Example:
        >>> trusted_mean(np.array([2.0, 0.0]), np.array([[9.0, 0.0], [-9.0, 0.0], [0.0, 1.0]]))
        array([2., 0.])
    """
    length, weights, out = float(np.linalg.norm(root)), 0.0, np.zeros_like(root)
    for row in rows:
        own = float(np.linalg.norm(row))
        if own > 0.0 and (likeness := float(row @ root)) > 0.0:
            weights += likeness / (own * length)
            out += row * (likeness / own**2)
    return out / weights if weights else out
