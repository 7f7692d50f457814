"""Merges under secure aggregation: the arithmetic of ``ring_sum``, under a protocol that shows the server only sums."""

from __future__ import annotations

from dataclasses import replace
from math import ceil, inf
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Le

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import ByMasks, ByShares, Hiding, Space, Total, share_of
from edgewise.core.stage import Merge
from edgewise.merges import robust
from edgewise.merges.ring import RingResidues, head_residues, ring_sum
from edgewise.privacy import rules
from edgewise.secagg.params import CORRUPT_MOST, Params, Server, TrustPolicy
from edgewise.secagg.secrets import Body, Head


def _hiding_merge(merge: Merge, name: str, hides: Hiding) -> Merge:
    """Put a merge under secure aggregation, and refuse rounds that may sum too few."""

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


@part
def secure_sum() -> Merge:
    """Add contributions behind masks that cancel in the sum (``secagg.client``, ``secagg.server``).

    Guarantees: the server learns the sum over at least ``n_min`` devices and who is in it. It learns nothing else of
        any contribution, as long as no more devices of a sum work with it than ``assured`` was given as ``corrupt``.
        The sum has the same numbers as with ``ring_sum``.
    Not promised: that the sum itself says nothing of a device (that takes noise), or that devices are honest.
    Raises: CompositionError as ``ring_sum``, and E-NMIN.
    """
    return _hiding_merge(ring_sum(), "secure_sum", ByMasks())


def secagg_trust_policy(
    merge: Merge, least: int, corrupt: int, dropout: float = 0.1, server: Server = "malicious"
) -> TrustPolicy:
    """Derive the trust policy for sums of ``least`` devices or more, ``corrupt`` of which may be corrupt.

    All corrupt devices may be in the smallest sum, where they are the largest share.
    Args: corrupt: most devices of one sum that may work with a server. dropout, server: as in ``TrustPolicy``.
    Raises CompositionError(E-NMIN) where the smallest sum does not hide the honest devices (``fewest``,
        ``fewest_shared``).
    """
    assert merge.hides is not None
    masks = merge.hides.interactive
    if least < (needed := smallest_masked_sum(corrupt, dropout) if masks else fewest_shared(corrupt)):
        more = f" and {share_of(dropout, least)} more drop out" if masks else ""
        less = " or drop-outs (trust.dropout_fraction, a share of a sum)" if masks else ""
        raise CompositionError(
            "E-NMIN",
            f"{merge.name}: a sum of {least} devices, of whom {corrupt} may be corrupt{more}, is not sure to hide the "
            f"others{' and to be opened' if more else ''}; it needs {needed}.",
            "raise round.cohort or round.minimum, or assume fewer corrupt devices (trust.malicious_fraction, a share "
            f"of the population){less}.",
        )
    # Devices compare this policy with their owners' floors. Shares withstand more corrupt devices than it can name.
    return TrustPolicy(min(corrupt / least, CORRUPT_MOST), dropout, server)


def smallest_masked_sum(corrupt: int, dropout: float = 0.0) -> int:
    """Number of devices of the smallest masked sum that hides the honest ones and that they can open.

    It is max(2, ceil((3 A + 1) / (1 - 2 delta))), where all A = ``corrupt`` devices and the share delta = ``dropout``
    may fail at once. Then every session of n >= n_min devices has n > 3 A(n) + 2 floor(delta n), with
    A(n) = floor(n A / n_min). So enough holders remain to give a secret back, and no lying server gets two survivor
    lists signed (``secagg.params``). Above 64 devices the sparse graph asks for more. A curious server does not lie,
    but the same rule applies to it.
    """
    return max(2, ceil(corrupt / CORRUPT_MOST), ceil((3 * corrupt + 1) / (1.0 - 2.0 * dropout) - 1e-9))


def fewest_shared(corrupt: int) -> int:
    """Number of devices of the smallest sum of shares that hides the honest ones: two more than the corrupt ones.

    With one more only, a server that knows the corrupt devices' updates can subtract them and read the last one's.
    """
    return corrupt + 2


def check_secagg_sessions(policy: TrustPolicy, least: int, largest: int) -> None:
    """Refuse a policy under which a session of ``least`` to ``largest`` devices has no graph, before anyone trains.

    It looks at each size. Where there are more than 1,024, it looks at both ends and at 1,024 sizes between them. Above
    64 devices a larger session does not always have a graph, because corrupt devices and drop-outs are whole numbers.
    Raises CompositionError(E-NMIN).
    """
    step = max(1, (largest - least) // 1024)
    for n in (*range(least, largest, step), largest):
        policy.check(n)


@part
def shared_sum() -> Merge:
    """Add contributions in two shares, one for the server and one for a helper (``secagg.two_server``).

    Guarantees: unless both work together, neither learns more than a sum of at least ``n_min`` devices. Here ``n_min``
        is two more than the ``corrupt`` devices that ``assured`` was given.
    Raises as ``secure_sum``.
    """
    return _hiding_merge(ring_sum(), "shared_sum", ByShares())


class MaskedGroups(NamedTuple):
    """Accumulator of several sums, one for each group."""

    sums: tuple[RingResidues, ...]


@part
def grouped(
    groups: Annotated[int, Ge(3), Le(1000), Doc("into which a cohort is dealt; above twice byzantine")],
    byzantine: Annotated[int, Ge(1), Le(499), Doc("devices of a cohort that may send anything")] = 1,
    rule: Annotated[robust.CoordinateRule, Doc("between the groups' means")] = "median",
) -> Merge:
    """Mask the sums of several random groups, and apply a robust rule to the groups' means.

    The server deals the groups anew in every round, after the keys have arrived, so that nobody can choose a group. A
    device that poisons spoils the mean of one group. With at most ``byzantine`` such devices the result is within the
    range of the means of the other groups, coordinate by coordinate.
    Guarantees: those of ``secure_sum`` with a group in place of the cohort. The server sees the sum of each group.
    Algebra: sensitivity inf, so no noise can be added to the result. Noise that devices add is sized for their group.
        The groups are disjoint, so a round costs as much privacy as one group's sum.
    Args: groups: g > 2 ``byzantine``. byzantine: f.
    Raises: RecipeError(E-VALUE); CompositionError as ``ring_sum``, and E-ROBUST-SECAGG for groups of fewer than f + 2.
    Source: Velicheti et al. 2021, arXiv:2110.02940.
    """
    require.between("grouped: groups (above twice byzantine)", groups, 2 * byzantine + 1, 1000)
    one, name = ring_sum(), f"grouped({groups}, {rule})"

    def infer(space: Space) -> Total:
        rules.refuse_small_robust_groups(rule, space.quorum.n_min, byzantine)
        return one.infer(space).but(sensitivity=inf)

    def init(space: Space) -> MaskedGroups:
        return MaskedGroups(tuple(one.init(space) for _ in range(groups)))

    def add(acc: MaskedGroups, payload: Payload, space: Space) -> MaskedGroups:
        """Add a contribution to the smallest group. A protocol with real groups makes its sums itself."""
        group = min(range(groups), key=lambda i: acc.sums[i].n)
        return MaskedGroups((*acc.sums[:group], one.add(acc.sums[group], payload, space), *acc.sums[group + 1 :]))

    def parts(acc: MaskedGroups) -> list[tuple[RingResidues, int]]:
        return [(total, total.n) for total in acc.sums if total.n]

    def says(total: Total) -> str:
        how = f"adds the encodings of {groups} random groups, decodes each sum, a robust mean of their means"
        return f"{how}; a group has {total.space.quorum.n_min} devices or more"

    return replace(
        one, name=name, says=says, infer=infer, init=init, add=add, parts=parts,
        combine=robust.merge_of_rule(robust.rule(rule, byzantine)), hides=ByMasks(groups, 2 * byzantine + 1),
    )  # fmt: skip


def session_params(space: Space, policy: TrustPolicy, rung: int | None = None) -> Params:
    """Derive a session's parameters for contributions in ``space`` (the ring after all stages)."""
    bits = space.grid.modulus.bit_length() - 1
    return Params(policy, max(2, space.quorum.n_min), bits, space.dim, len(space.head), rung)


def residues(payload: Payload) -> tuple[Body, Head]:
    """Convert a payload to the residues that a device masks: body uint32[d], head uint64[h].

    Raises DecodeError as ``head_residues``.
    """
    return payload.body.astype(np.uint32, copy=False), head_residues(payload.head)


def unmasked_total(body: Body, head: Head, n: int) -> RingResidues:
    """Wrap a released sum of n contributions as the merge's accumulator."""
    return RingResidues(body, head, n)
