"""Privacy accountant: epsilon of events, computed by dp-accounting under one convention for the noise multiplier.

    noise multiplier z = (standard deviation of the noise on the sum) / (most that one device can move the sum)

The sensitivity behind z is that of the event's adjacency: C for zero_out and add_remove, 2 C for replace_one.
dp-accounting's own ``REPLACE_ONE`` halves z in one accountant and not in the other (google/differential-privacy#378),
so nothing here relies on it. A Gaussian is accounted by its z, whoever the neighbours are. Only sampling without
replacement, which exists for replacement alone, gets z in the form that its RDP bound is written for.

    epsilon({spend.gaussian(1.1): 20}, delta=1e-6)      20 releases that the same device may have been in

Sources: Balle and Wang 2018 (exact Gaussian); Koskela et al. 2020 and Doroshenko et al. 2022 (PLD, Poisson); Wang et
al. 2019 (without replacement); Bun and Steinke 2016 (zCDP); Kairouz et al. 2021, arXiv:2103.00039 (tree).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache
from math import ceil, exp, inf, lgamma, log, log1p, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError
from edgewise.privacy.spend import PrivacyEvent

# Steps of privacy loss distributions. Epsilon is an upper bound with either, and tighter with the finer one.
FINE, COARSE = 1e-4, 1e-3
CELLS = 10**7  # Most steps of a privacy loss distribution: an epsilon of 10^4, or of 10^3 on the fine grid.
LEAST = 1e-3  # Smallest noise multiplier considered. One Gaussian with it has an epsilon of some 500,000.
Reader = Literal["release", "server"]
_Counted = tuple[tuple[PrivacyEvent, int], ...]

# dp-accounting leaves out orders at which its series does not converge. Epsilon is then looser but never wrong, and a
# user cannot change it, so its warning is dropped.
logging.getLogger("absl").addFilter(lambda record: "Excluding this order" not in record.getMessage())


def epsilon(events: Mapping[PrivacyEvent, int], delta: float, grid: float = FINE, against: Reader = "release") -> float:
    """Compute the epsilon of all events together.

    Gaussian without amplification: exact, for any mixture of multipliers. Poisson and truncated Poisson: privacy loss
    distributions. Anything with zCDP, trees or sampling without replacement: Renyi divergences. An epsilon of more than
    ``CELLS`` steps of the grid also comes from Renyi divergences, because its distribution would not fit in memory.
    Edge cases: ``inf`` for such an epsilon of a truncated event, which Renyi divergences do not bound. ``inf`` where
        there is no noise.
    Args:
        events: event -> times that the same device may have been in one. delta: in (0, 1).
        grid: step of privacy loss distributions, where there are some.
        against: the reader: of the "release", or the "server", which sees the devices that take part.
    Raises: CompositionError: E-ADJ-MIX for events of different neighbours or units, E-AMP-VISIBLE for amplification by
        sampling of devices against the server. Account ``PrivacyEvent.seen`` against the server instead.
    """
    counted = _comparable_events(events)
    if against == "server" and any(event.seen is not event for event, _ in counted):
        raise CompositionError(
            "E-AMP-VISIBLE",
            "amplification by sampling rests on nobody knowing who takes part, and the server sees it.",
            "against the server account the same events without sampling.",
        )
    return _composed_epsilon(counted, delta, grid)


def composed_epsilon(events: Mapping[PrivacyEvent, int], delta: float, grid: float = COARSE) -> float:
    """Compute the epsilon of events of different neighbours and units, at one ``delta``.

    It holds for two worlds that are neighbours in the sense of each event: an update replaced in one run, zeroed in
    another, a record that is in both of two more or in neither. Each mechanism's privacy loss is bounded by that of its
    dominating pair, whatever came out before, and dominating pairs compose (Zhu, Dong, Wang 2022, theorem 10). With a
    delta for each event, the total delta would be their sum.
    Args: as of ``epsilon``. Gaussians without amplification count as one, which is exact.
    """
    counted = _counted_steps(events)
    plain = [(event, n) for event, n in counted if _has_closed_form(((event, n),)) and not _is_without_noise(event)]
    if len(plain) > 1:
        one = PrivacyEvent("gaussian", "zero_out", z=1.0 / sqrt(sum(n / event.z**2 for event, n in plain)))
        counted = (*(both for both in counted if both not in plain), (one, 1))
    return _composed_epsilon(counted, delta, grid)


def _composed_epsilon(counted: _Counted, delta: float, grid: float) -> float:
    """Compute epsilon of counted events at delta."""
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta is {delta!r}, must be above 0 and below 1")
    if not counted:
        return 0.0
    if any(_is_without_noise(event) for event, _ in counted):
        return inf
    if _has_closed_form(counted):
        return gaussian_epsilon(1.0 / sqrt(sum(n / e.z**2 for e, n in counted)), delta)
    if not _has_loss_distribution(counted) or _by_renyi(counted, delta) > CELLS * grid:
        return inf if any(event.sampling == "truncated" for event, _ in counted) else _by_renyi(counted, delta)
    return _by_loss(counted, delta, grid)


def renyi_divergences(events: Mapping[PrivacyEvent, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the Renyi divergences of all events together: (orders, divergence at each).

    They are looser than ``epsilon`` where there is Poisson sampling. Truncation is left out, so for "truncated" they
    bound nothing. Raises as ``epsilon``.
    Args: events: at least one.
    """
    return _renyi_divergences(_comparable_events(events))


def epsilon_renyi(events: Mapping[PrivacyEvent, int], delta: float) -> float:
    """Compute epsilon by Renyi divergences alone (see ``renyi``), in milliseconds instead of a tenth of a second."""
    counted = _comparable_events(events)
    if any(_is_without_noise(event) for event, _ in counted):
        return inf
    return _by_renyi(counted, delta) if counted else 0.0


def _counted_steps(events: Mapping[PrivacyEvent, int]) -> _Counted:
    """Sort events, multiply their counts by their steps, and drop those with count 0."""
    return tuple(sorted(((event, n * event.steps) for event, n in events.items() if n), key=repr))


def _comparable_events(events: Mapping[PrivacyEvent, int]) -> _Counted:
    """Do as ``_counted_steps`` for events of one kind of neighbours and unit. Raises CompositionError(E-ADJ-MIX)."""
    counted = _counted_steps(events)
    for what in ("adjacency", "unit"):
        if len(kinds := sorted({getattr(event, what) for event, _ in counted})) > 1:
            raise CompositionError(
                "E-ADJ-MIX",
                f"epsilons of different neighbours cannot be added up: {what} is {' and '.join(kinds)}.",
                "account all mechanisms of a run for the same neighbours.",
            )
    return counted


def _is_without_noise(event: PrivacyEvent) -> bool:
    """Tell whether an event adds no noise."""
    return event.rho <= 0.0 if event.kind == "zcdp" else event.z <= 0.0


def _has_closed_form(counted: _Counted) -> bool:
    """Tell whether all events are full Gaussians, whose epsilon is a formula."""
    return all(e.kind in ("gaussian", "matrix") and not e.amplified for e, _ in counted)


def _has_loss_distribution(counted: _Counted) -> bool:
    """Tell whether a privacy loss distribution exists for all events."""
    return all(e.kind in ("gaussian", "matrix") and e.sampling != "fixed" for e, _ in counted)


@lru_cache(maxsize=4096)
def gaussian_epsilon(z: float, delta: float) -> float:
    """Compute the exact epsilon of one Gaussian release with noise multiplier z."""
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(z, delta))


@lru_cache(maxsize=4096)
def _by_loss(counted: _Counted, delta: float, grid: float) -> float:
    total: Any = None
    for event, n in counted:
        part = _privacy_loss(event, grid).self_compose(n) if n > 1 else _privacy_loss(event, grid)
        total = part if total is None else total.compose(part)
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=16)
def _privacy_loss(event: PrivacyEvent, grid: float) -> Any:
    """Compute the privacy loss distribution of one event. It is cached, because it takes most of a charge's time."""
    from dp_accounting.pld import privacy_loss_distribution as loss

    if event.sampling == "truncated":
        return loss.from_truncated_subsampled_gaussian_mechanism(
            event.population, event.rate, event.cap, event.z, value_discretization_interval=grid
        )
    rate = event.rate if event.sampling == "poisson" else 1.0
    return loss.from_gaussian_mechanism(event.z, value_discretization_interval=grid, sampling_prob=rate)


@lru_cache(maxsize=4096)
def _by_renyi(counted: _Counted, delta: float) -> float:
    from dp_accounting import rdp

    return float(rdp.compute_epsilon(*_renyi_divergences(counted), delta)[0])


def _renyi_divergences(counted: _Counted) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the divergences of all events, order by order."""
    parts = [(n, _event_divergences(event)) for event, n in counted]
    return parts[0][1][0], np.sum([n * divergences for n, (_, divergences) in parts], axis=0)


@lru_cache(maxsize=64)
def _event_divergences(event: PrivacyEvent) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute (orders, divergence at each) of one event. It is cached, because it takes most of a charge's time."""
    from dp_accounting import NeighboringRelation, rdp

    # The library asks for the relation that each event is defined for. The relation changes none of the numbers.
    relation = NeighboringRelation.ADD_OR_REMOVE_ONE
    if event.sampling == "fixed":
        relation = NeighboringRelation.REPLACE_ONE
    elif event.kind == "tree":
        relation = NeighboringRelation.REPLACE_SPECIAL
    accountant = rdp.RdpAccountant(neighboring_relation=relation).compose(_dp_accounting_event(event))
    orders, divergences = np.array(accountant.orders, np.float64), np.array(accountant.rdp, np.float64)
    orders.flags.writeable = divergences.flags.writeable = False  # The cache shares them.
    return orders, divergences


def _dp_accounting_event(event: PrivacyEvent) -> Any:
    """Translate an event for dp-accounting."""
    import dp_accounting as dp_event

    inner = dp_event.GaussianDpEvent(event.z)
    if event.kind == "zcdp":
        return dp_event.ZCDpEvent(event.rho, event.xi)
    if event.kind == "tree":
        return dp_event.SingleEpochTreeAggregationDpEvent(event.z, event.rounds)
    if event.sampling in ("poisson", "truncated"):
        return dp_event.PoissonSampledDpEvent(event.rate, inner)
    if event.sampling == "fixed":  # Its bound takes noise over the distance of two updates, which z is already.
        return dp_event.SampledWithoutReplacementDpEvent(event.population, event.cohort, inner)
    return inner


def calibrate(
    make: Callable[[float], Mapping[PrivacyEvent, int]],
    target: float,
    delta: float,
    tolerance: float = 5e-4,
    grid: float = COARSE,
) -> float:
    """Find the smallest noise multiplier z (relative error ``tolerance``, from above) with epsilon(make(z)) <= target.

    Renyi divergences find the neighbourhood. The exact accountant is asked near the answer only, because privacy loss
    distributions of very little noise take minutes.
    Args: make: z -> events. ``epsilon(make(z))`` must fall as z grows.
    Edge cases: z is ``LEAST`` where less noise would do.
    Raises ValueError where no z up to 10^6 will do.
    """

    def quick(z: float) -> bool:
        counted = _comparable_events(events := make(z))
        return (epsilon(events, delta) if _has_closed_form(counted) else epsilon_renyi(events, delta)) <= target

    def exact(z: float) -> float:
        return epsilon(make(z), delta, grid)

    low, high = LEAST, 1.0
    if quick(LEAST):
        return LEAST
    while not quick(high):
        low, high = high, 2.0 * high
        if high > 1e6:
            raise ValueError(f"no noise up to a multiplier of {high:g} reaches epsilon {target:g}")
    counted = _comparable_events(make(high))
    if _has_closed_form(counted) or not _has_loss_distribution(counted):
        return _bisected(quick, low, high, tolerance)
    high = _bisected(quick, low, high, 1e-2)
    # The secant starts with the slope that Renyi's epsilon has there.
    steeper = epsilon_renyi(make(1.05 * high), delta) / epsilon_renyi(make(high), delta)
    fine = _measured_predicate(exact, target, high, log(steeper) / log(1.05), tolerance)
    while not fine(high):  # Renyi divergences do not include the cost of truncation.
        high *= 1.25
        if high > 1e6:
            raise ValueError(f"no noise up to a multiplier of {high:g} reaches epsilon {target:g}")
    low = 0.8 * high
    while low > LEAST and fine(low):
        low, high = 0.8 * low, low
    found = _bisected(fine, low, high, tolerance)
    while exact(found) > target:  # Rounding can make epsilon rise slightly.
        found *= 1.0 + tolerance
    return found


def _bisected(enough: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """Find the least value that is enough, by bisection."""
    while high - low > tolerance * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _measured_predicate(
    measure: Callable[[float], float], target: float, start: float, slope: float, tolerance: float
) -> Callable[[float], bool]:
    """Build the predicate ``measure(z) <= target`` of a falling function, which measures only where it must.

    A secant in logarithms encloses the answer first, mostly with three or four measurements, to a fifth of
    ``tolerance``. A bisection with the predicate then takes the same steps as without it, and measures only one or two
    of them. Where the function is infinite or zero there is no secant, and the bisection measures for itself.
    Args: start: the first z of the secant. slope: d log(measure) / d log(z) there, roughly, below 0.
    """
    fails, holds = 0.0, inf

    def value(z: float) -> float:
        nonlocal fails, holds
        found = measure(z)
        fails, holds = (fails, min(z, holds)) if found <= target else (max(z, fails), holds)
        return found

    def enough(z: float) -> bool:
        return value(z) <= target if fails < z < holds else z >= holds

    x, last = log(start), (inf, inf)
    for _ in range(6):
        found = value(exp(x))
        if not 0.0 < found < inf or holds - fails <= 0.2 * tolerance * holds:
            break
        y = log(found / target)
        if last[0] < inf and (y - last[1]) * (x - last[0]) < 0.0:
            slope = (y - last[1]) / (x - last[0])
        last = x, y
        # A little beyond the answer, so as to enclose it. Long steps may end where a measurement takes minutes.
        step = -y / min(slope, -0.1) + (0.1 if y > 0.0 else -0.1) * tolerance
        x += max(log(0.5), min(step, log(1.25)))
    return enough


def safe_poisson_cap(population: int, rate: float, rounds: int, delta: float) -> int:
    """Find the smallest limit of a Poisson cohort that costs next to nothing.

    It has P[B >= cap] < delta / rounds, B ~ Binomial(population, rate). It is ``population`` where no smaller one will
    do. Smaller caps are sound but cost more epsilon.
    """
    if not 0.0 < rate < 1.0:
        return population
    mean = population * rate
    tail = 0.0
    for k in range(min(population, ceil(mean + 40.0 * sqrt(mean) + 200.0)), 0, -1):  # Terms beyond are below e^-400.
        choose = lgamma(population + 1) - lgamma(k + 1) - lgamma(population - k + 1)
        tail += exp(choose + k * log(rate) + (population - k) * log1p(-rate))
        if tail >= delta / rounds:
            return min(population, k + 1)
    return 1
