"""The sampling of cohorts, in numbers of devices."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.sections import RoundSection


@dataclass(frozen=True)
class Sampling:
    """The size of a cohort, and the number of contributions that completes a round.

    Attributes:
        kind: ``all``, ``fixed``, ``poisson`` or ``cyclic``.
        population: number of devices that exist.
        goal: number of contributions that closes the round. It is the population for ``all`` and ``poisson``, because
            closing early would spoil the sampling.
        expected: number of contributions that a round should have: the population, or ``round.cohort``.
        invite: number of invited devices (the expected number for ``poisson``).
        minimum: number of contributions below which the round is abandoned; 0 never abandons one, even an empty one.
        deadline_s: seconds after which the round closes in any case.
        rate: probability that a given device is invited.
        groups: number of disjoint groups that take turns; 1 = every device may be in every round.
    """

    kind: str
    population: int
    goal: int
    expected: int
    invite: int
    minimum: int
    deadline_s: float
    rate: float
    groups: int = 1

    @property
    def largest(self) -> int:
        """The largest size of a cohort. One Poisson cohort in 10^9 may be larger (``at_most``)."""
        return self.invite if self.kind != "poisson" else at_most(self.population, self.rate, 1e-9)

    def rounds_each(self, rounds: int) -> int:
        """Return the largest number of the ``rounds`` that one device takes part in."""
        return -(-rounds // self.groups)

    @property
    def earns(self) -> str:
        """The assumption about sampling that a privacy accountant may make, in words."""
        turns, rate = self.groups, f"{self.rate:.4g}"
        return {
            "all": "every device is in every round, so sampling amplifies nothing",
            "fixed": f"each round draws {self.invite} of {self.population} devices, which amplifies nothing",
            "cyclic": f"{turns} groups take turns, so a device is in one of {turns} rounds, which amplifies nothing",
            "poisson": f"Poisson sampling at rate {rate} can amplify privacy against readers, not against the server",
        }[self.kind]


def sampled(r: RoundSection, population: int) -> Sampling:
    """Return a recipe's sampling of a population. Raises RecipeError(E-QUORUM) for a larger cohort."""
    if r.sampling == "all":
        goal = invite = population
    else:
        if r.cohort > population:
            raise RecipeError(
                "E-QUORUM", f"round.cohort = {r.cohort}, but there are {population} devices.", "lower round.cohort."
            )
        invite = min(population, _rounded_up(r.cohort * r.overselect)) if r.sampling == "fixed" else r.cohort
        goal = r.cohort if r.sampling == "fixed" else population
    groups = 1
    if r.sampling == "cyclic":
        groups = population // r.cohort
        goal = invite = _rounded_up(population / groups)
    expected = population if r.sampling == "all" else r.cohort
    minimum = max(1, _rounded_up(expected * r.minimum)) if r.minimum else 0
    return Sampling(r.sampling, population, goal, expected, invite, minimum, r.deadline_s, invite / population, groups)


def at_most(n: int, p: float, failure: float) -> int:
    """Return the smallest m with P[X > m] <= ``failure`` by Chernoff's bound.

        P[X > m] <= exp(-n KL((m + 1) / n, p))

    X counts successes among ``n`` trials of probability ``p``. Trials are independent, or draws without replacement.
    Edge cases: p = 0 or n = 0 gives 0; p >= 1, or no such m, gives n.
    Source: Hoeffding 1963, theorems 1 and 4.
    """
    if p <= 0.0 or n <= 0:
        return 0

    def rare(m: int) -> bool:
        q = (m + 1) / n
        return n * (q * math.log(q / p) + (1.0 - q) * math.log((1.0 - q) / (1.0 - p))) >= -math.log(failure)

    low, end = math.floor(n * p), n - 1 if p < 1.0 else 0  # rare from some m on, above the mean
    if low < end and rare(end - 1):
        return bisect_left(range(end - 1), True, low, key=rare)
    return n if p >= 1.0 or n * math.log(1.0 / p) < -math.log(failure) else n - 1


def _rounded_up(x: float) -> int:
    """Round up, and ignore an excess in the last bits of a product such as 100 x 1.1."""
    return math.ceil(x - 1e-9)
