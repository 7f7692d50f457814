"""The sums of a round, as far as secure aggregation decides them: how few devices one has, and how many may be corrupt.

least    the smallest sum: round.minimum over the groups of a merge, or over the groups of one rung
corrupt  A of any one sum (``plan.trust``)
policy   what devices assume of each other, with which every session from the least to the largest has a graph
"""

from __future__ import annotations

from typing import NamedTuple

from edgewise.core.errors import RecipeError
from edgewise.core.stage import Merge
from edgewise.plan.codec_choice.choice import sorting
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.sampling import Sampling
from edgewise.plan.trust import check_read, corrupt_most
from edgewise.secagg.merge import assured, check_sessions
from edgewise.secagg.params import TrustPolicy


class Sums(NamedTuple):
    """The sums of a round.

    Attributes:
        least: devices of the smallest one. corrupt: of them in any one sum, at most; 0 where nothing is hidden.
        policy: what devices assume; None where nothing is hidden.
        rungs: groups of a rung each that a hidden cohort is sorted into, at most; None where its codec is one for all.
    """

    least: int
    corrupt: int = 0
    policy: TrustPolicy | None = None
    rungs: int | None = None


def sums_of(recipe: Recipe, merge: Merge, sampling: Sampling) -> Sums:
    """The sums of a recipe's rounds.

    Raises:
        RecipeError(E-COMBO): [trust] that nothing reads, a hidden sum without a least number of devices, rungs that
            cannot be hidden. CompositionError(E-NMIN): a sum that is too small to hide the honest.
    """
    check_read(recipe, merge)
    least = max(1, sampling.minimum // merge.groups)
    if merge.hides is None:
        return Sums(least)
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
        rungs, least = sorting(recipe, merge, sampling.minimum, corrupt)
    policy = assured(merge, least, corrupt, trust.dropout_fraction, trust.server)
    if merge.hides.interactive:
        check_sessions(policy, least, -(-sampling.largest // merge.groups))
    return Sums(least, corrupt, policy, rungs)
