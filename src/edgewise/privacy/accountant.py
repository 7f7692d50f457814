"""Epsilon from events, with dp-accounting underneath and one convention on top.

    noise multiplier z = (standard deviation of the noise on the sum) / (most that one device can move the sum)

The sensitivity that goes with z is that of the event's adjacency: C for zero_out and add_remove, 2 C for replace_one.
dp-accounting's own ``REPLACE_ONE`` halves z in one accountant and not in the other (google/differential-privacy#378),
so nothing here relies on it: a Gaussian is accounted by its z, whoever the neighbours are, and only sampling without
replacement, which exists for replacement alone, is given z in the form that its RDP bound is written for.
Sources: Balle and Wang 2018 (exact Gaussian); Koskela et al. 2020 and Doroshenko et al. 2022 (PLD, Poisson); Wang et
al. 2019 (without replacement); Bun and Steinke 2016 (zCDP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from math import inf, sqrt
from typing import Any

from edgewise.privacy.spend import Event

# Of the privacy loss distribution; epsilon is an upper bound whatever it is, and tighter with the finer one.
FINE, COARSE = 1e-4, 1e-3


def epsilon(events: Mapping[Event, int], delta: float, grid: float = FINE) -> float:
    """The epsilon of all events together, each as often as it says.

    Gaussian without amplification: exact, whatever mixture of multipliers. Poisson and truncated Poisson: privacy loss
    distributions. Anything with zCDP or sampling without replacement: Renyi. ``inf`` where there is no noise.
    Args:
        events: event -> times that the same device may have been in one. delta: in (0, 1).
        grid: step of privacy loss distributions, where there are some.
    """
    events = {event: n for event, n in events.items() if n}
    if not events:
        return 0.0
    if any(_bare(event) for event in events):
        return inf
    if all(e.kind in ("gaussian", "matrix") and e.sampling == "every" for e in events):
        return gaussian(1.0 / sqrt(sum(n / e.z**2 for e, n in events.items())), delta)
    return _composed(tuple(sorted(events.items(), key=repr)), delta, grid)


def _bare(event: Event) -> bool:
    return event.rho <= 0.0 if event.kind == "zcdp" else event.z <= 0.0


@lru_cache(maxsize=4096)
def gaussian(z: float, delta: float) -> float:
    """Exact epsilon of one Gaussian release with noise multiplier z."""
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(z, delta))


@lru_cache(maxsize=4096)
def _composed(events: tuple[tuple[Event, int], ...], delta: float, grid: float) -> float:
    from dp_accounting import NeighboringRelation, pld, rdp

    kinds = {e.sampling for e, _ in events}
    exact = kinds <= {"every", "poisson", "truncated"} and all(e.kind != "zcdp" for e, _ in events)
    accountant: Any
    if exact:
        accountant = pld.PLDAccountant(value_discretization_interval=grid)
    else:
        relation = NeighboringRelation.REPLACE_ONE if "fixed" in kinds else NeighboringRelation.ADD_OR_REMOVE_ONE
        accountant = rdp.RdpAccountant(neighboring_relation=relation)
    for event, n in events:
        accountant.compose(_native(event), n)
    return float(accountant.get_epsilon(delta))


def _native(event: Event) -> Any:
    import dp_accounting as dp_event

    if event.kind == "zcdp":
        return dp_event.ZCDpEvent(event.rho, event.xi)
    if event.sampling == "poisson":
        return dp_event.PoissonSampledDpEvent(event.rate, dp_event.GaussianDpEvent(event.z))
    if event.sampling == "truncated":
        return dp_event.TruncatedSubsampledGaussianDpEvent(event.population, event.rate, event.cap, event.z)
    if event.sampling == "fixed":  # its bound halves what it is given; z here is sigma / 2C already
        inner = dp_event.GaussianDpEvent(event.z)
        return dp_event.SampledWithoutReplacementDpEvent(event.population, event.cohort, inner)
    return dp_event.GaussianDpEvent(event.z)


def calibrate(make: Callable[[float], Mapping[Event, int]], target: float, delta: float) -> float:
    """The smallest noise multiplier z (to 0.1 %, from above) with which ``make(z)`` keeps epsilon <= target.

    ``epsilon(make(z))`` must fall as z grows. Raises ValueError where no z up to 10^6 will do.
    """
    low, high = 0.0, 1.0
    while epsilon(make(high), delta, COARSE) > target:
        low, high = high, 2.0 * high
        if high > 1e6:
            raise ValueError(f"no noise up to a multiplier of {high:g} reaches epsilon {target:g}")
    while high - low > 5e-4 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if epsilon(make(middle), delta, COARSE) <= target else (middle, high)
    return high
