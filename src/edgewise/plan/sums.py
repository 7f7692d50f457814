"""The sums of a round under secure aggregation: the smallest number of devices, and the largest number of corrupt ones.

least     round.minimum over the groups of a merge, or over the groups of one rung
corrupt   A of any one sum (``plan.trust``)
policy    assumptions of devices, with which every session from the least to the largest has a graph
"""

from __future__ import annotations

from typing import NamedTuple

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.stage import Merge
from edgewise.plan.codec_choice.choice import most_rung_groups
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.trust import check_trust_keys, corrupt_most
from edgewise.secagg.merge import check_secagg_sessions, secagg_trust_policy
from edgewise.secagg.params import TrustPolicy


class PlannedSums(NamedTuple):
    """The sums of a round.

    Attributes:
        least: number of devices in the smallest sum.
        corrupt: largest number of corrupt devices in any one sum; 0 where nothing is hidden.
        policy: assumptions of devices about each other and the server. None where nothing is hidden.
        rungs: largest number of groups of one rung in a hidden cohort. None where all devices use one codec.
    """

    least: int
    corrupt: int = 0
    policy: TrustPolicy | None = None
    rungs: int | None = None


def planned_sums(recipe: Recipe, merge: Merge, sampling: Sampling) -> PlannedSums:
    """Return the sums of a recipe's rounds.

    Raises:
        RecipeError: E-COMBO for a key of [trust] that nothing reads, for a hidden sum without a least number of
            devices, and for rungs that cannot be hidden.
        CompositionError: E-NMIN for a sum that is too small to hide the honest devices.
    """
    check_trust_keys(recipe, merge)
    least = max(1, sampling.minimum // merge.groups)
    if merge.hides is None:
        return PlannedSums(least)
    if not sampling.minimum:
        raise RecipeError(
            "E-COMBO",
            'privacy = "central_dp" with round.sampling = "poisson" releases every round, and a hidden sum is '
            "opened of a least number of devices only.",
            '[merge] kind = "sum", or round.sampling = "cyclic".',
        )
    trust, rungs = recipe.trust, None
    corrupt = corrupt_most(trust, sampling, recipe.round.rounds, merge.groups)
    if recipe.codec == "adaptive":
        rungs, least = most_rung_groups(recipe, merge, sampling.minimum, corrupt)
    if recipe.trainable.shares and least * recipe.trainable.shares[recipe.trainable.rank] - corrupt < 2.0:
        raise CompositionError(
            "E-NMIN",
            f"trainable.rank_shares: the smallest sum has {least} devices, of which {corrupt} may be corrupt, and "
            f"{100 * recipe.trainable.shares[recipe.trainable.rank]:g} % have rank {recipe.trainable.rank}. The last "
            "columns would hide less than two honest devices.",
            "take larger cohorts, raise round.minimum, or give more devices that rank.",
        )
    if (shares := recipe.trainable.depth_shares) and least * (fewest := min(shares.values())) - corrupt < 2.0:
        raise CompositionError(
            "E-NMIN",
            f"trainable.block_shares: the smallest sum has {least} devices, of which {corrupt} may be corrupt, and "
            f"{100 * fewest:g} % train {max(shares)} blocks. The first would hide less than two honest devices.",
            "take larger cohorts, raise round.minimum, or let more devices train that many.",
        )
    policy = secagg_trust_policy(merge, least, corrupt, trust.dropout_fraction, trust.server)
    if merge.hides.interactive:
        check_secagg_sessions(policy, least, -(-sampling.largest // merge.groups))
    return PlannedSums(least, corrupt, policy, rungs)


def check_privacy_word(recipe: Recipe, merge: Merge) -> None:
    """Check that the privacy word and the merge agree. Raises RecipeError(E-COMBO)."""
    kind = recipe.merge["kind"]
    if recipe.privacy == "none" and merge.hides is not None:
        what = f'privacy = "none", but [merge] {kind} hides single updates.'
        raise RecipeError("E-COMBO", what, 'write privacy = "hidden".')
    if recipe.privacy == "hidden" and merge.hides is None:
        what = f'privacy = "hidden", but with [merge] {kind} the server sees single updates.'
        raise RecipeError("E-COMBO", what, '[merge] kind = "secure_sum" (one server) or "shared_sum" (two).')
