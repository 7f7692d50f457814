"""Sums that hide what is summed: the arithmetic of ``ring_sum`` under a protocol that shows the server nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgewise.core.errors import CompositionError
from edgewise.core.space import Space, Total
from edgewise.core.stage import Merge, Payload
from edgewise.merges.ring import Residues, head_residues, ring_sum
from edgewise.secagg.params import Params, Policy
from edgewise.secagg.secrets import Body, Head


@dataclass(frozen=True, slots=True)
class Hiding:
    """How a merge hides contributions.

    Attributes:
        servers: 1 (masks) or 2 (additive shares). policy: what devices assume of each other and of the server.
    """

    servers: int
    policy: Policy


def _hiding(merge: Merge, name: str, hides: Hiding) -> Merge:
    def infer(space: Space) -> Total:
        total = merge.infer(space)
        if space.quorum.n_min < 2:
            raise CompositionError(
                "E-NMIN",
                f"{name}: a round may end with {space.quorum.n_min} contribution, and a sum of one hides nothing.",
                "raise round.minimum or the cohort.",
            )
        return total

    return replace(merge, name=name, infer=infer, hides=hides)


def secure_sum(policy: Policy | None = None) -> Merge:
    """Masks that cancel in the sum (``secagg.client``, ``secagg.server``).

    Guarantees: the server learns the sum over at least ``n_min`` devices and who is in it, and nothing else of any
        contribution; with a malicious server as long as fewer than the policy's share of a cohort works with it. The
        numbers are those of ``ring_sum``.
    Not promised: that the sum itself says nothing of a device (that takes noise), or that devices are honest.
    Raises: CompositionError as ``ring_sum``, and E-NMIN.
    """
    return _hiding(ring_sum(), "secure_sum", Hiding(1, policy or Policy()))


def shared_sum() -> Merge:
    """Two shares, one for the server and one for a helper (``secagg.two_server``).

    Guarantees: neither learns more than the sum, unless both work together. Raises as ``secure_sum``.
    """
    return _hiding(ring_sum(), "shared_sum", Hiding(2, Policy()))


def params(space: Space, hides: Hiding) -> Params:
    """The session's fixed part for contributions in ``space`` (the ring after all stages)."""
    bits = space.modulus.bit_length() - 1
    return Params(hides.policy, max(2, space.quorum.n_min), bits, space.dim, len(space.head))


def residues(payload: Payload) -> tuple[Body, Head]:
    """What a device hides: body uint32[d], head uint64[h]. Raises DecodeError as ``head_residues``."""
    return payload.body.astype(np.uint32, copy=False), head_residues(payload.head)


def total(body: Body, head: Head, n: int) -> Residues:
    """A released sum of n contributions as the merge's accumulator."""
    return Residues(body, head, n)
