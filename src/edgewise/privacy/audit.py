"""Does it hold? Lower bounds of epsilon from what a mechanism really puts out.

*Mechanism audit*: many runs with and without one worst-case device; a threshold test between the two worlds has false
positive and negative rates that no mu-GDP mechanism can have for a mu below a bound (Dong, Roth, Su 2019):
    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR)
*One-run audit*: m canaries, each in with probability 1/2, in a single run; the auditor guesses r of them. Of an (eps,
delta)-DP mechanism v or more right guesses have probability at most (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846)
    p = min(1, P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i),  B ~ Binomial(r, 1 / (1 + e^-eps))
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgewise.privacy import accountant

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim and what was measured against it.

    Attributes:
        claimed: mu (mechanism) or epsilon (one run). lower: bound that holds with ``confidence``. runs: of each world,
        or canaries. epsilon_lower: the same as epsilon at the claim's delta.
    """

    name: str
    claimed: float
    lower: float
    epsilon_claimed: float
    epsilon_lower: float
    runs: int
    confidence: float

    @property
    def holds(self) -> bool:
        """Whether the measurement is consistent with the claim."""
        return self.lower <= self.claimed

    @property
    def tight(self) -> bool:
        """Whether at least 0.8 of the claim was reached: an audit that finds much less may look at the wrong thing."""
        return self.lower >= 0.8 * self.claimed


def upper_rate(failures: int, n: int, confidence: float) -> float:
    """Clopper-Pearson: the largest rate with which so few failures in n have probability 1 - confidence."""
    if failures >= n:
        return 1.0
    low, high = failures / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _binomial_below(failures, n, middle) > 1 - confidence else (low, middle)
    return high


def _binomial_below(k: int, n: int, p: float) -> float:
    """P[Binomial(n, p) <= k]."""
    if p <= 0.0:
        return 1.0
    if p >= 1.0:
        return float(k >= n)
    i = np.arange(max(0, k - 2000), k + 1)  # further terms are far below what matters
    gammas = np.array([lgamma(x + 1) + lgamma(n - x + 1) for x in i.tolist()])
    return float(np.exp(lgamma(n + 1) - gammas + i * log(p) + (n - i) * log1p(-p)).sum())


def gaussian_mu(without: NDArray[np.float64], with_: NDArray[np.float64], confidence: float = 0.95) -> float:
    """Lower bound of mu from scores of runs without and with the device (larger: more likely with it).

    The threshold is chosen on the first quarter of the runs and tested on the others, so that choosing costs nothing.
    """
    n = min(without.size, with_.size)
    quarter, side = n // 4, 1 - (1 - confidence) / 2
    best, threshold = -np.inf, 0.0
    for t in np.quantile(np.concatenate([without[:quarter], with_[:quarter]]), np.linspace(0.05, 0.95, 37)):
        fpr, fnr = (np.mean(without[:quarter] > t), np.mean(with_[:quarter] <= t))
        rates = [min(max(float(x), 1 / quarter), 1 - 1 / quarter) for x in (fpr, fnr)]
        value = _NORMAL.inv_cdf(1 - rates[0]) - _NORMAL.inv_cdf(rates[1])
        slack = sum(np.sqrt(r * (1 - r) / n) / _NORMAL.pdf(_NORMAL.inv_cdf(r)) for r in rates)  # noise of the bound
        if value - slack > best:
            best, threshold = value - slack, float(t)
    rest = n - quarter
    fpr_up = upper_rate(int((without[quarter:n] > threshold).sum()), rest, side)
    fnr_up = upper_rate(int((with_[quarter:n] <= threshold).sum()), rest, side)
    if fpr_up >= 1.0 or fnr_up >= 1.0:
        return 0.0
    return max(0.0, _NORMAL.inv_cdf(1 - fpr_up) - _NORMAL.inv_cdf(fnr_up))


def mechanism(name: str, mu: float, delta: float, without: NDArray[np.float64], with_: NDArray[np.float64]) -> Finding:
    """The finding of a mechanism audit with a claim of ``mu``."""
    lower, n = gaussian_mu(without, with_), min(without.size, with_.size)
    eps = [accountant.gaussian(1.0 / m, delta) if m > 0 else 0.0 for m in (mu, lower)]
    return Finding(name, mu, lower, eps[0], eps[1], n, 0.95)


def p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Largest probability of ``v`` or more right among ``r`` guesses about ``m`` canaries under (eps, delta)-DP."""
    q = 1.0 / (1.0 + exp(-eps))
    i = np.arange(r + 1)
    gammas = np.array([lgamma(x + 1) + lgamma(r - x + 1) for x in i.tolist()])
    mass = np.exp(lgamma(r + 1) - gammas + i * log(q) + (r - i) * (log1p(-q) if q < 1 else -np.inf))
    beta = float(mass[v:].sum())
    below = np.cumsum(mass[:v][::-1])  # P[v - i <= B < v] for i = 1 .. v
    alpha = float((below / np.arange(1, v + 1)).max()) if v else 0.0
    return min(1.0, beta + 2.0 * m * delta * alpha)


def one_run_epsilon(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """The largest eps that ``v`` right of ``r`` guesses rule out at this confidence; 0.0 where none."""
    if p_value(m, r, v, 0.0, delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, 64.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(m, r, v, middle, delta) <= 1 - confidence else (low, middle)
    return low


def guesses(scores: NDArray[np.float64], present: NDArray[np.bool_], r: int) -> int:
    """Right guesses among the r canaries with the most extreme scores: half "in" at the top, half "out" below."""
    order = np.argsort(scores)
    half = r // 2
    return int(present[order[-half:]].sum() + (~present[order[:half]]).sum())


def one_run(
    name: str, epsilon: float, delta: float, scores: NDArray[np.float64], present: NDArray[np.bool_]
) -> Finding:
    """The finding of a one-run audit: the best of some numbers of guesses, corrected for having tried them."""
    m = scores.size
    tries = sorted({max(2, 2 * int(m * share / 2)) for share in (0.02, 0.1, 0.3, 1.0)})
    confidence = 1 - 0.05 / len(tries)
    lower = max(one_run_epsilon(m, r, guesses(scores, present, r), delta, confidence) for r in tries)
    return Finding(name, epsilon, lower, epsilon, lower, m, 0.95)
