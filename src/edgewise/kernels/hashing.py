"""Random words that depend only on a seed and the index of a coordinate, never on the order of the work.

Source of the mixer: Steele, Lea, Flood 2014 (SplitMix), constants of ``java.util.SplittableRandom``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgewise.core.compiled import compiled

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_ONE = np.uint64(1)


@compiled
def hash_word(seed: np.uint64, i: int) -> np.uint64:
    """Compute the i-th word of the stream ``seed``, 64 bits."""
    z = seed + (np.uint64(i) + _ONE) * _GOLDEN
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@compiled
def hashed_uniform(seed: np.uint64, i: int) -> float:
    """Compute the i-th number in [0, 1) of the stream ``seed``, 53 bits."""
    return np.float64(hash_word(seed, i) >> _S11) * 2.0**-53


@compiled
def fill_hash_words(seed: np.uint64, first: int, words: NDArray[np.uint64]) -> None:
    """Write the words ``first``, ``first`` + 1, ... of the stream ``seed`` to ``words``, 64 bits each."""
    for j in range(words.size):
        words[j] = hash_word(seed, first + j)


@compiled
def choose_by_hash(n: int, k: int, seed: np.uint64) -> NDArray[np.int64]:
    """Draw k of 0..n-1 without replacement, in increasing order.

    Source: selection sampling (Knuth, TAOCP 2, algorithm 3.4.2 S).
    """
    out = np.empty(k, np.int64)
    have = 0
    for i in range(n):
        if have == k:
            break
        if hashed_uniform(seed, i) * np.float64(n - i) < np.float64(k - have):
            out[have] = i
            have += 1
    return out
