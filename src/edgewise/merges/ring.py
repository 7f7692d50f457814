"""Blind sum: residues are added in rings, body and head alike, and only the total is decoded."""

from __future__ import annotations

from math import log2, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError, DecodeError
from edgewise.core.payload import Payload
from edgewise.core.safe_repr import outline
from edgewise.core.space import Kind, Space, Total
from edgewise.core.stage import Merge

HEAD_FRACTION_BITS = 32  # One unit of a head's residue is 2^-32, far below any metric. 2^31 devices cannot wrap.
_UNIT = 2.0**HEAD_FRACTION_BITS


class RingResidues(NamedTuple):
    """An accumulator.

    Attributes:
        body: uint32[d] modulo ``Grid.modulus``, reused in place.
        head: uint64[h] modulo 2^64, reused in place.
        n: number of contributions.
    """

    body: NDArray[np.uint32]
    head: NDArray[np.uint64]
    n: int

    def __repr__(self) -> str:
        return outline(self)


def head_residues(head: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Convert head scalars to residues modulo 2^64, in units of 2^-32, rounded half to even.

    Raises:
        DecodeError: E-PAYLOAD for a value that is not finite, E-RANGE for 2^20 or more.
    """
    if not np.isfinite(head).all():
        raise DecodeError("E-PAYLOAD", "a head value is not finite.")
    if head.size and float(np.abs(head).max()) >= 2.0**20:
        raise DecodeError("E-RANGE", "a head value is too large to be summed.")
    return np.rint(head * _UNIT).astype(np.int64).view(np.uint64)


def ring_sum() -> Merge:
    """Add residues modulo 2^b (body) and 2^64 (head), and decode only the total.

    This is the arithmetic of secure aggregation without masks. It hides nothing by itself. ``secagg.merge`` adds the
    protocol that does, and gives the same numbers.

    Guarantees: exact, independent of order and sharding. A refused contribution changes nothing. Each head scalar is
    rounded by at most 2^-33 per contribution.
    Raises:
        CompositionError: E-TOPK-SECAGG for per-device supports, E-NOT-INTEGER if the body is not in a ring,
            E-NOT-SUMMABLE.
        DecodeError (add): E-PAYLOAD for a residue outside the ring or a head value that is not finite.
    """

    def infer(space: Space) -> Total:
        if space.sparse:
            raise CompositionError(
                "E-TOPK-SECAGG",
                "top_k cannot be combined with secure aggregation. Each device would pick other coordinates, so masked "
                "vectors could not be added, and the choice itself reveals data.",
                "use random_k or shared_top_k.",
            )
        if space.grid.kind is not Kind.RING:
            raise CompositionError(
                "E-NOT-INTEGER",
                f"a blind sum adds residues of a ring, and the body is {space.grid.kind.value}.",
                'end the stages with quantize(grid="shared") and wrap.',
            )
        if not space.summable:
            raise CompositionError(
                "E-NOT-SUMMABLE", "a blind sum cannot add these encodings.", 'use quantize(grid="shared").'
            )
        sure = space.noise.honest or space.quorum.n_min
        # The sum is exact, and then decoded in float32. Each level of a rotation rounds once, and the rest three times.
        roundings = 3 + log2(max(1, space.rotated))
        more = 2.0 * space.quorum.n_max * space.l2 * 2.0**-24 * roundings
        head = sqrt(len(space.head)) / _UNIT
        return Total(space, space.sensitivity, sqrt(sure) * space.noise.std, False, step=0.0, rounding=more + head)

    def init(space: Space) -> RingResidues:
        return RingResidues(np.zeros(space.dim, np.uint32), np.zeros(len(space.head), np.uint64), 0)

    def add(acc: RingResidues, payload: Payload, space: Space) -> RingResidues:
        if payload.support is not None or payload.body.shape != acc.body.shape or payload.head.shape != acc.head.shape:
            raise ValueError(f"contribution has shape {payload.body.shape}, the sum has {acc.body.shape}")
        if acc.n >= space.quorum.n_max:
            raise ValueError(f"the sum holds {acc.n} contributions, its limit")
        head = head_residues(payload.head)
        if payload.body.size and int(payload.body.max()) >= space.grid.modulus:
            raise DecodeError("E-PAYLOAD", f"a residue is not below the modulus {space.grid.modulus}.")
        np.add(acc.body, payload.body, out=acc.body, casting="same_kind")
        np.bitwise_and(acc.body, np.uint32(space.grid.modulus - 1), out=acc.body)
        np.add(acc.head, head, out=acc.head)
        return RingResidues(acc.body, acc.head, acc.n + 1)

    def finish(acc: RingResidues, space: Space, precise: bool = True) -> Payload:
        return Payload(acc.body.copy(), acc.head.view(np.int64) / _UNIT)

    return Merge("ring_sum", True, lambda _: "adds encodings, decodes the sum once", infer, init, add, finish)
