"""Exact discrete Gaussian integers from a cryptographic generator.

    P[X = x] proportional to exp(-x^2 / (2 S^2)),  x integer

Only integers are compared, so nothing is rounded, and the low bits of floating point cannot give anything away.
Source: Canonne, Kamath, Steinke 2020, arXiv:2004.00010, algorithms 1 to 3, with Laplace scale t = S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled
from edgewise.core.keys import Key
from edgewise.crypto.prg import KeyStreamWords

LARGEST = 1 << 24  # largest S. All compared products with S^2 stay far inside 64 bits.
_BUFFER = 1 << 15  # words drawn at a time, 256 KiB
_SPARE = 4096  # No sample begins with fewer words. One takes about 15, and more than 4096 never (< 2^-1000).


@compiled
def _uniform_below(words: NDArray[np.uint64], at: int, n: np.uint64) -> Any:
    """Draw (uniform in [0, n), next position): as many low bits as n needs, drawn again where they are too large."""
    mask = n - np.uint64(1)
    mask |= mask >> np.uint64(1)
    mask |= mask >> np.uint64(2)
    mask |= mask >> np.uint64(4)
    mask |= mask >> np.uint64(8)
    mask |= mask >> np.uint64(16)
    mask |= mask >> np.uint64(32)
    while True:
        value = words[at] & mask
        at += 1
        if value < n:
            return value, at


@compiled
def _bernoulli_exp(words: NDArray[np.uint64], at: int, top: np.uint64, bottom: np.uint64) -> Any:
    """Draw (Bernoulli(exp(-top / bottom)), next position), top <= bottom: algorithm 1, gamma in [0, 1]."""
    k = np.uint64(1)
    while True:
        u, at = _uniform_below(words, at, bottom * k)
        if u >= top:
            return (k & np.uint64(1)) == np.uint64(1), at
        k += np.uint64(1)


@compiled
def _discrete_gaussian(words: NDArray[np.uint64], at: int, s: np.uint64) -> Any:
    """Draw (one sample, next position): algorithm 3 around algorithm 2."""
    one, square = np.uint64(1), np.uint64(2) * s * s
    while True:
        u, at = _uniform_below(words, at, s)
        keep, at = _bernoulli_exp(words, at, u, s)
        if not keep:
            continue
        v = np.uint64(0)
        while True:
            more, at = _bernoulli_exp(words, at, one, one)
            if not more:
                break
            v += one
        x = u + s * v
        negative = (words[at] & one) == one
        at += 1
        if negative and x == np.uint64(0):
            continue
        far = x - s if x > s else s - x
        top = far * far
        accepted = True
        while top > square and accepted:  # exp(-gamma) = exp(-1)^floor(gamma) exp(-rest)
            accepted, at = _bernoulli_exp(words, at, one, one)
            top -= square
        if accepted:
            accepted, at = _bernoulli_exp(words, at, top, square)
        if accepted:
            return (-np.int64(x) if negative else np.int64(x)), at


@compiled
def _fill_samples(words: NDArray[np.uint64], s: np.uint64, out: NDArray[np.int64], done: int, spare: int) -> Any:
    """Fill ``out`` as long as words are left. Returns how many are done."""
    at = 0
    while done < out.size and words.size - at >= spare:
        out[done], at = _discrete_gaussian(words, at, s)
        done += 1
    return done, at


def discrete_gaussian(s: int, n: int, entropy: Key) -> NDArray[np.int64]:
    """Draw n independent samples of N_Z(0, s^2), int64.

    Args:
        s: standard deviation parameter, an integer from 1 to 2^24. entropy: 32 fresh secret bytes, used for this only.
    Guarantees: exactly distributed if the key stream is uniform. The same key gives the same samples.
    """
    if not 1 <= s <= LARGEST:
        raise ValueError(f"S is {s}, must be from 1 to {LARGEST}")
    stream, out, done = KeyStreamWords(entropy), np.empty(n, np.int64), 0
    words = np.empty(0, np.uint64)
    while done < n:
        fresh = np.empty(min(_BUFFER, _SPARE + 20 * (n - done)), np.uint64)
        stream.fill(fresh)
        words = np.concatenate([words, fresh])  # Words left over come first, so that none is skipped.
        done, at = _fill_samples(words, np.uint64(s), out, done, _SPARE)
        words = words[at:]
    return out


@compiled
def _rounded_at_random(y: NDArray[np.float64], words: NDArray[np.uint64], out: NDArray[np.int64]) -> Any:
    """Round each coordinate up or down at random. Returns the squared norm."""
    total = np.int64(0)
    for i in range(y.size):
        low = np.floor(y[i])
        up = np.float64(words[i] >> np.uint64(11)) * 2.0**-53 < y[i] - low
        q = np.int64(low) + np.int64(up)
        out[i] = q
        total += q * q
    return total


def round_within_norm(y: NDArray[np.float64], limit: float, entropy: Key) -> NDArray[np.int64]:
    """Round every coordinate up or down at random, E[q] = y, and repeat until ||q||_2 <= limit.

    The norm is that of the integers, exact. With a limit from ``distributed.rounded_norm`` each try succeeds with
    probability at least 1 - exp(-1/2). Given success, the rounding is slightly biased.
    Args:
        y: float64[d], |y_i| < 2^31 and sum y_i^2 < 2^62.
    Raises ValueError where y itself is beyond the limit by more than rounding can repair.
    Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, section 4 (conditional rounding).
    """
    if float(np.dot(y, y)) > (limit + 1e-6 * max(1.0, limit)) ** 2:
        raise ValueError("the vector is longer than its bound")
    stream, out = KeyStreamWords(entropy), np.empty(y.size, np.int64)
    words = np.empty(y.size, np.uint64)
    while True:
        stream.fill(words)
        if float(_rounded_at_random(y, words, out)) <= limit * limit:
            return out
