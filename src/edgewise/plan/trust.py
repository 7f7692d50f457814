"""The largest number of corrupt devices in one sum. This one number sizes both masks and noise.

    exist  = floor(malicious_fraction x population)
    server = "malicious":   A = min(cohort, exist)
        A lying server invites whom it likes, pretends that other keys never came, and deals groups to its liking.
    server = "curious":     A = min{a: P[X > a] <= 2^-40}
        The server draws cohorts and groups as it says. X is the number of corrupt devices in what it drew.
    cohorts = "verified", with a malicious server:
                            A = min{a: P[X > a] <= 2^-40 / (draws x lists)},  X ~ Hypergeometric(n, exist, cohort)
        Every device verifies the draw over the whole population (``engine.beacon``). A lying server still pretends that
        others are away and deals groups to its liking, so all X of the cohort may be in one sum. It may also choose
        one of ``lists`` = n - exist seeds: a list of exist + 1 contributors has an honest one, and an honest one
        reveals for one list. Each seed fixes all ``draws`` of the run: its rounds, or the groups that take turns.

Where devices choose the group that they are in (``codec = "adaptive"``), all corrupt ones of a cohort may be in one.
Tails are Chernoff's bounds, which hold for draws with and without replacement (Hoeffding 1963, theorems 1 and 4). The
2^-40 is per cohort, per run where cohorts are verified, and is added neither to delta nor to the failures of a masked
session. The tail of verified cohorts is exact.
"""

from __future__ import annotations

from math import log

from edgewise.core.errors import RecipeError
from edgewise.core.space import share_of
from edgewise.core.stage import Merge
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.sections import TrustSection
from edgewise.plan.sampling import Sampling, chernoff_most
from edgewise.secagg.params import hypergeometric_more_than

FAILURE = 2.0**-40  # Per cohort for a curious server's draw, and for all verified draws of a run together.


def corrupt_existing(trust: TrustSection, population: int) -> int:
    """Return the largest number of corrupt devices in a population."""
    return share_of(trust.malicious_fraction, population)


def planned_contributors(trust: TrustSection, population: int) -> int:
    """Return the number of devices whose random values draw verified cohorts: one more than may be corrupt.

    Edge cases: 0 where the server draws alone.
    """
    return corrupt_existing(trust, population) + 1 if trust.cohorts == "verified" else 0


def corrupt_most(trust: TrustSection, sampling: Sampling, rounds: int, groups: int = 1) -> int:
    """Return A for a cohort that is dealt at random into ``groups`` sums (see the module), in a run of ``rounds``."""
    exist, n = corrupt_existing(trust, sampling.population), sampling.population
    if trust.cohorts == "verified":
        draws = rounds if sampling.kind == "fixed" else min(rounds, sampling.groups)
        limit = log(FAILURE) - log(draws) - log(n - exist)
        return hypergeometric_more_than(n, exist, sampling.invite, limit) if sampling.invite < n else exist
    if trust.server == "malicious":
        return min(exist, n if sampling.kind == "poisson" else sampling.invite)
    found = chernoff_most(exist, sampling.invite / n, FAILURE)
    if sampling.kind != "poisson":
        found = min(found, chernoff_most(sampling.invite, exist / n, FAILURE))
    if groups > 1:
        # A group has ceil(m / g) of the m devices whose keys came. A given corrupt device is in it with at most this
        # probability. Corrupt devices never drop out, so m may be the smallest number that a round allows.
        least = max(1, sampling.minimum)
        found = chernoff_most(found, min(1.0, 1.0 / groups + (groups - 1) / (groups * least)), FAILURE)
    return found


def check_trust_keys(recipe: Recipe, merge: Merge) -> None:
    """Check that the run reads every key that [trust] gives. Raises RecipeError(E-COMBO)."""
    found = {key for key, field in TrustSection.model_fields.items() if getattr(recipe.trust, key) != field.default}
    if merge.hides is None:
        unread, by = found, "merges that hide single updates"
    else:
        unread, by = found & (set() if merge.hides.interactive else {"dropout_fraction"}), "masks"
    if unread:
        what = f"trust.{sorted(unread)[0]} is for {by}. Nothing reads it with [merge] {recipe.merge['kind']}."
        raise RecipeError("E-COMBO", what, "leave it out.")
    if recipe.trust.cohorts == "verified":
        _check_verified(recipe)


def _check_verified(recipe: Recipe) -> None:
    """Check that verified cohorts have something to verify, and reveal no secret. Raises RecipeError(E-COMBO)."""
    key, fix = 'trust.cohorts = "verified"', 'leave it out, or write round.sampling = "fixed" or "cyclic".'
    if recipe.trust.server == "curious":
        what = f'{key} is against a server that lies about its draw, and with trust.server = "curious" none does.'
        raise RecipeError("E-COMBO", what, 'leave it out, or write trust.server = "malicious".')
    if recipe.round.sampling == "all":
        raise RecipeError("E-COMBO", f"{key} has nothing to verify. All devices are in every round.", fix)
    if recipe.round.sampling == "poisson":
        what = f"{key} tells every device who is in a cohort. Poisson sampling needs that secret."
        raise RecipeError("E-COMBO", what, fix)
