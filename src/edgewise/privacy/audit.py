"""Does it hold? A lower bound of mu from many runs of what a mechanism really puts out.

*Mechanism audit*: many runs with and without one worst-case device; a threshold test between the two worlds has false
positive and negative rates that no mu-GDP mechanism can have for a mu below a bound (Dong, Roth, Su 2019):
    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR)
``mechanism_audit`` has the many runs in the coordinates of one large release, through the real pipeline.
The audit with many devices and a single release is in ``privacy.one_run``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, lgamma, log, log1p, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgewise.core.keys import Key, Turn, derive
from edgewise.core.pipeline import Pipeline
from edgewise.core.vector import Vector
from edgewise.privacy import accountant

FULL_WEIGHT = 1e9  # amount of data: whatever the cap, every update counts in full
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Guessed:
    """What a one-run audit rests on: ``right`` of ``guesses`` were, from which the plain form, which does not use the
    Gaussian's curve, has the bound ``epsilon_plain``."""

    guesses: int
    right: int
    epsilon_plain: float


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim and what was measured against it.

    Attributes:
        claimed: mu. lower: bound of mu that holds with ``confidence``. epsilon_claimed, epsilon_lower: the same as
        epsilon at the claim's delta. runs: of each world, or canaries. guessed: of a one-run audit.
    """

    name: str
    claimed: float
    lower: float
    epsilon_claimed: float
    epsilon_lower: float
    runs: int
    confidence: float
    guessed: Guessed | None = None

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
    reach = 2000 + 12 * int(sqrt(n))  # further terms are far below what matters: 24 standard deviations and more
    i = np.arange(max(0, k - reach), k + 1)
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


def release(pipe: Pipeline, updates: Iterable[Vector], key: Key) -> Vector:
    """What the server has after one round with these updates: the decoded sum, after all stages and posts.

    Masks and shares are left out: they cancel exactly, whoever looks at the sum.
    """
    public, total = derive(key, "public"), pipe.start_sum()
    for i, x in enumerate(updates):
        turn = Turn(0, public, derive(key, "device", i))
        payload, _ = pipe.encode(x, dict.fromkeys(pipe.spaces[0].head, 0.0), FULL_WEIGHT, pipe.init(), turn)
        total = pipe.add(total, payload, turn)
    aggregate, _ = pipe.release(total, Turn(0, public), derive(key, "release"), pipe.start_memory())
    return aggregate.mean * np.float32(aggregate.weight)


def claimed_mu(pipe: Pipeline) -> float:
    """What ``pipe`` says of itself: sensitivity / noise_std. Raises ValueError where nothing bounds or hides one."""
    claim = pipe.total
    if not (0.0 < claim.noise_std < inf and claim.sensitivity < inf):
        raise ValueError("this pipeline claims nothing")
    return claim.sensitivity / claim.noise_std


def mechanism_audit(name: str, pipe: Pipeline, update: Vector, delta: float, key: Key) -> Finding:
    """Two real releases of ``pipe``, with one device's ``update`` and with zeros in its place, every coordinate a run.

    The claim is the pipeline's own: mu = sensitivity / noise_std, divided by sqrt(d) for one coordinate, which is what
    an update of equal magnitudes at the bound moves it by. Only the contributions whose noise is counted on are in the
    sum: others may come without.
    Args:
        update: float32[d], |update_i| all alike and not 0; longer than the clip, so that a missing one is seen. For mu
            near 1: clip C sqrt(d) and z = 1 / sqrt(d).
    Raises ValueError on another update, or where nothing bounds or hides one.
    Guarantees: ``lower`` holds with 95 % where the noise of different coordinates is independent. After a rotation it
        is uncorrelated and nearly normal, which is as good once S is 10 or so.
    """
    if update.size == 0 or not (update != 0).all() or np.ptp(np.abs(update)) > 1e-6 * float(np.abs(update).max()):
        raise ValueError("every coordinate of the update is a run, so all must have one magnitude")
    mu, space = claimed_mu(pipe) / sqrt(update.size), pipe.total.space
    others = [np.zeros_like(update)] * ((space.honest or space.quorum.n_min) - 1)
    sides, scores = np.sign(update).astype(np.float64), []
    for world, mine in (("without", np.zeros_like(update)), ("with", update)):
        scores.append(sides * release(pipe, [mine, *others], derive(key, world)))
    return mechanism(name, mu, delta, *scores)
