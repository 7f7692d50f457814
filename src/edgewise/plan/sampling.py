"""The sampling of cohorts, in numbers of devices."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.buffer import KIND, BufferSection
from edgewise.plan.recipe.sections import RoundSection


@dataclass(frozen=True)
class Buffer:
    """The rule of asynchronous rounds (``[buffer]``).

    Attributes:
        concurrency: number of devices that train at any time. max_staleness: rounds that a contribution may lag.
        damping: a of ``weight``. rest: least number of rounds between two contributions of a device.
    """

    concurrency: int
    max_staleness: int
    damping: float
    rest: int

    def weight(self, staleness: int) -> float:
        """Compute the weight of a contribution to the model before ``staleness`` rounds: (1 + staleness)^-damping.

        It is 1 at 0 and never above. Source: Nguyen et al. 2022, arXiv:2106.06639, section 5 (a = 1/2).
        """
        return float((1.0 + staleness) ** -self.damping)

    @property
    def versions(self) -> int:
        """The number of models that contributions to a round may start from."""
        return self.max_staleness + 1


@dataclass(frozen=True)
class Sampling:
    """The size of a cohort, and the number of contributions that completes a round.

    Attributes:
        kind: ``all``, ``fixed``, ``poisson``, ``cyclic`` or ``buffered``.
        population: number of devices that exist.
        goal: number of contributions that closes the round. It is the population for ``all`` and ``poisson``, because
            closing early would spoil the sampling.
        expected: number of contributions that a round should have: the population, or ``round.cohort``.
        invite: number of invited devices (the expected number for ``poisson`` and ``buffered``).
        minimum: number of contributions below which the round is abandoned; 0 never abandons one, even an empty one.
        deadline_s: seconds after which the round closes in any case.
        rate: probability that a given device is invited.
        groups: a device is in at most one of so many rounds in a row: the number of disjoint groups that take turns, or
            ``Buffer.rest``; 1 = every device may be in every round.
        buffer: the rule of asynchronous rounds. None where a round waits for its own devices.
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
    buffer: Buffer | None = None

    @property
    def largest(self) -> int:
        """The largest size of a cohort. One Poisson cohort in 10^9 may be larger (``chernoff_most``)."""
        return self.invite if self.kind != "poisson" else chernoff_most(self.population, self.rate, 1e-9)

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
            "buffered": f"a device is in at most one of {turns} rounds in a row, which amplifies nothing"
            if turns > 1
            else "a fast device may be in every round, so sampling amplifies nothing",
            "poisson": f"Poisson sampling at rate {rate} can amplify privacy against readers, not against the server",
        }[self.kind]


def recipe_sampling(r: RoundSection, population: int, buffer: BufferSection | None = None) -> Sampling:
    """Return a recipe's sampling of a population. Raises RecipeError(E-QUORUM) for a larger cohort.

    ``buffer``: the recipe's [buffer], which ``buffered`` needs.
    """
    if r.sampling == "all":
        goal = invite = population
    else:
        if r.cohort > population:
            raise RecipeError(
                "E-QUORUM", f"round.cohort = {r.cohort}, but there are {population} devices.", "lower round.cohort."
            )
        invite = min(population, _rounded_up(r.cohort * r.overselect)) if r.sampling == "fixed" else r.cohort
        goal = r.cohort if r.sampling in ("fixed", KIND) else population
    groups, rule = 1, None
    if r.sampling == KIND and buffer is not None:
        rule = Buffer(buffer.concurrency, buffer.max_staleness, buffer.damping, buffer.rest)
        groups = buffer.rest
        if (needed := buffer.concurrency + r.cohort * (buffer.rest - 1)) > population:
            what = f"buffer.concurrency = {buffer.concurrency} and buffer.rest = {buffer.rest} need {needed:,} devices"
            raise RecipeError("E-QUORUM", f"{what}, and there are {population:,}.", "lower them, or round.cohort.")
    if r.sampling == "cyclic":
        groups = population // r.cohort
        goal = invite = _rounded_up(population / groups)
    expected = population if r.sampling == "all" else r.cohort
    minimum = max(1, _rounded_up(expected * r.minimum)) if r.minimum else 0
    return Sampling(
        r.sampling, population, goal, expected, invite, minimum, r.deadline_s, invite / population, groups, rule
    )


def chernoff_most(n: int, p: float, failure: float) -> int:
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
