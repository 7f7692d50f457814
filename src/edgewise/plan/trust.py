"""How many corrupt devices one sum may hold, at most. Masks and noise are both sized by this one number.

    exist  = floor(malicious_fraction x population)
    server = "malicious":   A = min(cohort, exist)
        A lying server invites whom it likes, pretends that other keys never came, and deals groups to its liking.
    server = "curious":     A = min{a: P[X > a] <= 2^-40}
        The server draws cohorts and groups as it says. X is the number of corrupt devices in what it drew.

Where devices choose the group that they are in (``codec = "adaptive"``), all corrupt ones of a cohort may be in one.
Tails are Chernoff's bounds, which hold for draws with and without replacement (Hoeffding 1963, theorems 1 and 4). The
2^-40 is per cohort and is added neither to delta nor to the failures of a masked session.
"""

from __future__ import annotations

from edgewise.core.errors import RecipeError
from edgewise.core.space import share_of
from edgewise.core.stage import Merge
from edgewise.plan.recipe import Recipe
from edgewise.plan.sampling import Sampling, at_most
from edgewise.plan.section import TrustSection

FAILURE = 2.0**-40  # of a curious server's draw, per cohort


def corrupt_existing(trust: TrustSection, population: int) -> int:
    """How many corrupt devices a population has, at most."""
    return share_of(trust.malicious_fraction, population)


def corrupt_most(trust: TrustSection, sampling: Sampling, groups: int = 1) -> int:
    """A, of a cohort dealt at random into ``groups`` sums of their own (see the module)."""
    exist, n = corrupt_existing(trust, sampling.population), sampling.population
    if trust.server == "malicious":
        return min(exist, n if sampling.kind == "poisson" else sampling.invite)
    found = at_most(exist, sampling.invite / n, FAILURE)
    if sampling.kind != "poisson":
        found = min(found, at_most(sampling.invite, exist / n, FAILURE))
    if groups > 1:
        # A group of ceil(m / g) of the m devices whose keys came has each corrupt one with this probability at most;
        # corrupt devices never drop out, so m may be as small as a round may be.
        least = max(1, sampling.minimum)
        found = at_most(found, min(1.0, 1.0 / groups + (groups - 1) / (groups * least)), FAILURE)
    return found


def check_read(recipe: Recipe, merge: Merge) -> None:
    """Raises RecipeError(E-COMBO) where [trust] says what nothing reads."""
    given = {key for key, field in TrustSection.model_fields.items() if getattr(recipe.trust, key) != field.default}
    if merge.hides is None:
        unread, by = given, "merges that hide single updates"
    else:
        unread, by = given & (set() if merge.hides.interactive else {"dropout_fraction"}), "masks"
    if unread:
        what = f"trust.{sorted(unread)[0]} is for {by}; nothing reads it with [merge] {recipe.merge['kind']}."
        raise RecipeError("E-COMBO", what, "leave it out.")
