"""Privacy audit in one run: a lower bound of mu, and so of epsilon, from guesses about canaries in a single release.

*Game* (Steinke, Nasr, Jagielski 2023, arXiv:2305.08846): each of m canaries is in with probability 1/2, independently.
The guesser looks at the release and says "in" or "out" of c' canaries of its choice. c of its guesses are right.

*Bound* (Mahloujifar, Melis, Chaudhuri 2024, arXiv:2410.22235, theorem 3.1 and algorithm 3, for two options a canary).
Let f be the trade-off function of the mechanism and F(x) = 1 - f(x). For the mu-GDP family

    F(x) = Phi(Phi^-1(x) + mu),    F^-1(x) = Phi(Phi^-1(x) - mu)

Let p_i be the probability of exactly i right guesses, and

    r_i = sum_{j >= i} (j / m) p_j,    h_i = sum_{j >= i} ((c' - j) / m) p_j,    r_0 + h_0 = c' / m

"Guess j is right, and i or more others are" is an event that flipping canary j makes "guess j is wrong, and as many
others are right". Averaged over j (F is concave) this is r_{i+1} <= F(h_i), so with dr = (i / (c' - i)) dh

    h_i >= max(h_{i+1}, F^-1(r_{i+1})),    r_i = r_{i+1} + i / (c' - i) (h_i - h_{i+1}),    i = c - 1, ..., 0

If c or more right guesses had probability tau, then r_c >= tau c / m and r_c + h_c = tau c' / m. The recursion from the
smallest such r_c gives the smallest r_0 + h_0 (both are monotone in r_c, and in tau). Where that is more than c' / m,
c or more right guesses are less probable than tau in any mechanism with this f. Then f is rejected with confidence
1 - tau. mu is monotone too, and is found by bisection. Once h_i stays, it stays to the end: p_i is 0 from there.

*Number of guesses*: fixed by m alone (``one_run_guess_count``), or by m and the claim (``telling_guess_count``), before
a score is seen, so that its choice costs nothing. If c' guesses are all right, the bound is ``mu_lower(m, c', c')``,
and no larger one is possible: 1.5 for 320 of 4,096, 2.0 for 1,024, 2.3 for 2,048.

*Plain form* (Steinke et al., theorem 5.2): of an (epsilon, delta)-DP mechanism c or more right guesses have probability
at most
    min(1, P[B >= c] + 2 m delta max_i P[c - i <= B < c] / i),    B ~ Binomial(c', 1 / (1 + e^-epsilon))
It is weaker, because it uses one point of the curve only. It is reported beside the other because it needs no curve.
"""

from __future__ import annotations

from dataclasses import replace
from math import erfc, exp, lgamma, log, log1p, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled
from edgewise.privacy import accountant
from edgewise.privacy.audit_findings import AuditFinding, OneRunGuesses

_GUESSES = 5.0  # guesses over sqrt(m): within 5 % of the best number for epsilon 1 to 8 and m from 100 to 100,000
_ROOM = 1.4  # least bound over the claim that all right guesses should show
_ROOT_2, _ROOT_2_PI = sqrt(2.0), sqrt(2.0 * pi)


def one_run_guess_count(m: int) -> int:
    """Choose the number of guesses about ``m`` canaries: 5 sqrt(m), even, at most m.

    More guesses have a smaller statistical error, but the further ones are less certain. The best number hardly depends
    on epsilon. 0 for fewer than two canaries.
    """
    return 2 * min(m // 2, round(_GUESSES * sqrt(m) / 2.0))


def right_guesses(scores: NDArray[np.float64], present: NDArray[np.bool_], guesses: int) -> int:
    """Count the right ones of ``guesses`` (even): "in" for the half with the highest scores, "out" for the lowest.

    scores, present: [m]. Equal scores are taken in the order of the canaries, which is independent of their presence.
    """
    order, half = np.argsort(scores, kind="stable"), guesses // 2
    return int(present[order[scores.size - half :]].sum() + (~present[order[:half]]).sum())


@compiled
def _rejects_mu(m: int, guesses: int, right: int, mu: float, tau: float) -> bool:
    """Tell whether the recursion of the module ends above c' / m. 1 <= right <= guesses <= m, mu >= 0, 0 < tau < 1."""
    all_of_it = guesses / m
    r, h = tau * right / m, tau * (guesses - right) / m
    z = -37.0  # Phi^-1(r). r only grows, and Newton's method for the concave log Phi(z) = log r converges from below.
    for i in range(right - 1, -1, -1):
        step = 1.0
        while step > 1e-12:  # It takes 2 or 3 steps, except for the first r.
            phi = 0.5 * erfc(-z / _ROOT_2)
            step = log(r / phi) * phi * _ROOT_2_PI * exp(0.5 * z * z)
            z += step
        below = 0.5 * erfc((mu - z) / _ROOT_2)
        if below <= h:
            break
        r += i / (guesses - i) * (below - h)
        h = below
        if r + h > all_of_it:
            return True  # The sum only grows.
    return bool(r + h > all_of_it)


def mu_lower(m: int, guesses: int, right: int, confidence: float = 0.95) -> float:
    """Compute the largest mu whose mu-GDP mechanisms allow so many right guesses with probability at most
    1 - ``confidence``. 0.0 if none.

    Args:
        m: number of canaries. guesses: number of guesses, fixed before the scores were seen. right: number of right
        ones.
    Raises: ValueError unless 0 <= right <= guesses <= m and 0 < confidence < 1.
    Guarantees: for a mechanism that is mu-GDP for flipping one canary, the result exceeds mu with probability at most
        1 - confidence, whatever the guesser does. It rises with ``right`` and falls with ``confidence``. Always finite.
    Edge cases: no guesses, none right or half of them right give 0.0. Fewer than 5 guesses cannot show anything at 95 %
        (2^-4 > 0.05).
    Cost: about 0.2 us for each right guess and step of the bisection, 10 ms for 500 guesses.
    """
    if not 0 <= right <= guesses <= m or not 0.0 < confidence < 1.0:
        raise ValueError(f"{right} right of {guesses} guesses about {m} canaries, at confidence {confidence}")
    tau = 1.0 - confidence
    if right == 0 or not _rejects_mu(m, guesses, right, 0.0, tau):
        return 0.0
    low, high = 0.0, 1.0
    while _rejects_mu(m, guesses, right, high, tau):
        low, high = high, 2.0 * high
    while high - low > 1e-9 * high:
        middle = (low + high) / 2.0
        low, high = (middle, high) if _rejects_mu(m, guesses, right, middle, tau) else (low, middle)
    return low


def telling_guess_count(m: int, claimed: float) -> int:
    """Choose the number of guesses about ``m`` canaries that can refute a claim of mu = ``claimed``. It is even.

    It is ``one_run_guess_count``, or a quarter or half of the canaries where even ``one_run_guess_count`` right guesses
    would show less than 1.4 times the claim. More guesses are less certain, so their bound on a true claim is lower. 0
    for fewer than two canaries.
    """
    few = (one_run_guess_count(m), 2 * (m // 8), 2 * (m // 4))
    choices = sorted(n for n in few if n >= one_run_guess_count(m))
    return next((n for n in choices if mu_lower(m, n, n) >= _ROOM * claimed), choices[-1])


def plain_p_value(m: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound the probability of ``right`` or more right guesses on an (epsilon, delta)-DP mechanism, in plain form."""
    q = 1.0 / (1.0 + exp(-epsilon))
    i = np.arange(guesses + 1)
    gammas = np.array([lgamma(x + 1) + lgamma(guesses - x + 1) for x in i.tolist()])
    tail = (guesses - i) * log1p(-q) if q < 1.0 else np.where(i == guesses, 0.0, -np.inf)
    mass = np.exp(lgamma(guesses + 1) - gammas + i * log(q) + tail)
    beta = float(mass[right:].sum())
    below = np.cumsum(mass[:right][::-1])  # P[c - i <= B < c] for i = 1 .. c
    alpha = float((below / np.arange(1, right + 1)).max()) if right else 0.0
    return min(1.0, beta + 2.0 * m * delta * alpha)


def plain_epsilon(m: int, guesses: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """Compute the largest epsilon that the plain form rejects at this confidence and ``delta``: 0.0 where none, at
    most 64."""
    if plain_p_value(m, guesses, right, 0.0, delta) > 1 - confidence:
        return 0.0
    low, high = 0.0, 64.0
    for _ in range(50):
        middle = (low + high) / 2
        accepted = plain_p_value(m, guesses, right, middle, delta) > 1 - confidence
        low, high = (low, middle) if accepted else (middle, high)
    return low


def one_run(
    name: str,
    mu: float,
    delta: float,
    scores: NDArray[np.float64],
    present: NDArray[np.bool_],
    confidence: float = 0.95,
    guesses: int = 0,
) -> AuditFinding:
    """Make the finding of a one-run audit with a claim of ``mu``.

    Args:
        mu: of flipping one canary: the distance by which that moves the release, over the standard deviation of its
            noise. delta: at which mu is converted to an epsilon. scores: [m], larger: more likely in.
        present: [m], the canaries that were in, drawn with probability 1/2 each, and not used for the scores.
        guesses: even, chosen without the scores. ``one_run_guess_count`` where 0.
    Guarantees: for a mu-GDP release the finding fails to hold with probability at most 1 - confidence. Noise that is
        not normal is compared by a curve that is not its own. Sums of discrete Gaussians are close enough that no audit
        of this size sees the difference.
    """
    m, guesses = scores.size, guesses or one_run_guess_count(scores.size)
    n_right = right_guesses(scores, present, guesses)
    lower = mu_lower(m, guesses, n_right, confidence)
    guessed = OneRunGuesses(guesses, n_right, plain_epsilon(m, guesses, n_right, delta, confidence))
    eps = [accountant.gaussian_epsilon(1.0 / x, delta) if x > 0.0 else 0.0 for x in (mu, lower)]
    return AuditFinding(name, mu, lower, eps[0], eps[1], m, confidence, guessed)


def one_run_finding(mu: float, delta: float, scores: NDArray[np.float64], present: NDArray[np.bool_]) -> AuditFinding:
    """Make the finding of ``one_run`` with as many guesses as can refute the claim (``telling_guess_count``).

    Where no number can, ``left_out`` says so.
    """
    m = scores.size
    guesses = telling_guess_count(m, mu)
    found = one_run("one run", mu, delta, scores, present, guesses=guesses)
    if (largest := mu_lower(m, guesses, guesses)) > mu:
        return found
    breaches = f"breaches: {m:,} canaries show a mu of {largest:.2g} at most, {mu:.3g} is claimed"
    return replace(found, left_out=(breaches,))
