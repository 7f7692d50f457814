"""Findings of privacy audits: a claim, and the lower bound of mu that was measured.

A threshold test between runs with and without one device has false positive and negative rates that no mu-GDP mechanism
can have for a mu below a bound (Dong, Roth, Su 2019):
    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log, log1p, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgewise.core.vector import Vector
from edgewise.privacy import accountant
from edgewise.privacy.spend import PrivacyEvent

_NORMAL = NormalDist()
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OneRunGuesses:
    """Guesses of a one-run audit: ``right`` of ``guesses`` were right. ``epsilon_plain`` is the bound of the plain
    form, which does not use the Gaussian's curve."""

    guesses: int
    right: int
    epsilon_plain: float


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """Claim and the measurement against it.

    Attributes:
        claimed: mu. lower: bound of mu that holds with ``confidence``. epsilon_claimed, epsilon_lower: the same as
        epsilon at the claim's delta. runs: number of runs of each world, canaries, or updates. guessed: of a one-run
        audit. of: the audited part, in words. The finding is about that and nothing larger. None until the part is
        named. left_out: parts that were not audited.
    """

    name: str
    claimed: float
    lower: float
    epsilon_claimed: float
    epsilon_lower: float
    runs: int
    confidence: float
    guessed: OneRunGuesses | None = None
    of: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Tell whether the measurement is consistent with the claim."""
        return self.lower <= self.claimed

    @property
    def tight(self) -> bool:
        """Tell whether the bound reaches 0.8 of the claim. An audit that finds much less may test the wrong thing."""
        return self.lower >= 0.8 * self.claimed


def upper_rate(failures: int, n: int, confidence: float) -> float:
    """Compute the Clopper-Pearson upper bound: the largest rate at which so few failures in n have probability
    1 - confidence."""
    if failures >= n:
        return 1.0
    low, high = failures / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_below(failures, n, middle) > 1 - confidence else (low, middle)
    return high


def _binomial_below(k: int, n: int, p: float) -> float:
    """Compute P[Binomial(n, p) <= k]."""
    if p <= 0.0:
        return 1.0
    if p >= 1.0:
        return float(k >= n)
    reach = 2000 + 12 * int(sqrt(n))  # Terms beyond are 24 standard deviations away or more, and negligible.
    i = np.arange(max(0, k - reach), k + 1)
    gammas = np.array([lgamma(x + 1) + lgamma(n - x + 1) for x in i.tolist()])
    return float(np.exp(lgamma(n + 1) - gammas + i * log(p) + (n - i) * log1p(-p)).sum())


def gaussian_mu(without: Scores, with_: Scores, confidence: float = 0.95) -> float:
    """Compute a lower bound of mu from scores of runs without and with the device (larger: more likely with it).

    The threshold is chosen on the first quarter of the runs and tested on the others, so the choice costs nothing.
    """
    n = min(without.size, with_.size)
    quarter = n // 4
    best, threshold = -np.inf, 0.0
    for t in np.quantile(np.concatenate([without[:quarter], with_[:quarter]]), np.linspace(0.05, 0.95, 37)):
        fpr, fnr = (np.mean(without[:quarter] > t), np.mean(with_[:quarter] <= t))
        rates = [min(max(float(x), 1 / quarter), 1 - 1 / quarter) for x in (fpr, fnr)]
        value = _NORMAL.inv_cdf(1 - rates[0]) - _NORMAL.inv_cdf(rates[1])
        slack = sum(np.sqrt(r * (1 - r) / n) / _NORMAL.pdf(_NORMAL.inv_cdf(r)) for r in rates)  # noise of the bound
        if value - slack > best:
            best, threshold = value - slack, float(t)
    return mu_of_test(without[quarter:n] > threshold, with_[quarter:n] > threshold, confidence)


def mu_of_test(without: NDArray[np.bool_], with_: NDArray[np.bool_], confidence: float = 0.95) -> float:
    """Compute a lower bound of mu from a test that was fixed beforehand: its answers "with" in both kinds of runs."""
    n, side = min(without.size, with_.size), 1 - (1 - confidence) / 2
    fpr_up = upper_rate(int(without[:n].sum()), n, side)
    fnr_up = upper_rate(n - int(with_[:n].sum()), n, side)
    if fpr_up >= 1.0 or fnr_up >= 1.0:
        return 0.0
    return max(0.0, _NORMAL.inv_cdf(1 - fpr_up) - _NORMAL.inv_cdf(fnr_up))


def mechanism_finding(name: str, mu: float, delta: float, without: Scores, with_: Scores) -> AuditFinding:
    """Make the finding of a mechanism audit with a claim of ``mu``."""
    return measured_finding(name, mu, delta, gaussian_mu(without, with_), min(without.size, with_.size))


def noise_grain_finding(
    name: str, mu: float, delta: float, without: Vector, with_: Vector, moved: float
) -> AuditFinding:
    """Test whether the last bits of small values reveal an added ``moved`` (Mironov 2012).

    Where y = t + n was added in floating point, n is about -t where y is small, and y is a multiple of the last bit of
    t. Noise alone of the size of y has finer bits. The test says "with" where 0 < |y| < |t| / 64 is such a multiple.
    Args:
        mu: claimed. without, with_: float32, one run each. moved: t, by which a run with the device is moved.
    Guarantees: ``lower`` holds with 95 %. Values on one grid in both worlds show nothing.
    """
    unit = float(np.spacing(np.float32(moved))) / 2.0  # It is half a spacing, as n may be just below a power of two.

    def on_grid(y: NDArray[np.float64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (y != 0.0) & (np.abs(y) < moved / 64.0) & (np.rint(y / unit) == y / unit)
        return found

    lower = mu_of_test(on_grid(without.astype(np.float64)), on_grid(with_.astype(np.float64)))
    return measured_finding(name, mu, delta, lower, min(without.size, with_.size))


def measured_finding(name: str, mu: float, delta: float, lower: float, runs: int) -> AuditFinding:
    """Make the finding of a claim of ``mu`` where ``lower`` holds with 95 %."""
    return AuditFinding(name, mu, lower, gdp_epsilon(mu, delta), gdp_epsilon(lower, delta), runs, 0.95)


def gdp_epsilon(mu: float, delta: float) -> float:
    """Compute the epsilon at ``delta`` of a mechanism that is mu-GDP. 0.0 for a mu of 0."""
    return accountant.gaussian_epsilon(1.0 / mu, delta) if mu > 0.0 else 0.0


def event_mu(event: PrivacyEvent) -> float:
    """Compute the accountant's charge for ``event``, with known participation, as mu: 1 / z, or sqrt(2 rho).

    The noise of distributed sums is no Gaussian. Its zCDP is represented by the Gaussian with the same rho (xi is far
    below the resolution of an audit). Correlated noise: mu of the whole run. Raises ValueError for trees and without
    noise.
    """
    size = sqrt(2.0 * event.rho) if event.kind == "zcdp" else 1.0 / event.z if event.z > 0.0 else 0.0
    if event.kind == "tree" or size <= 0.0:
        raise ValueError(f"no mu for {event}")
    return size
