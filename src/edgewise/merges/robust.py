"""Robust rules that make one vector of n vectors, f of which may be arbitrary.

    median             n > 2 f        coordinate by coordinate: the middle value, or the mean of the two in the middle
    trimmed_mean       n > 2 f        coordinate by coordinate: the mean without the f largest and the f smallest
    geometric_median   n > 2 f        the point with the least sum of distances, by smoothed Weiszfeld steps
    krum               n >= 2 f + 3   the vector with the least sum of squared distances to its n - f - 2 nearest others
    multi_krum         n >= 2 f + 3   the mean of the n - f vectors with the least such sums

Rules by coordinates stay within the range of the honest vectors there. Steps before a rule make honest vectors more
alike, or bound long ones:

    nnm                each vector becomes the mean of its n - f nearest ones, itself among them
    arc                the floor(2 f (n - f) / n) longest vectors are cut to the length of the next one

``bucket_means`` goes before both: it makes means of random vectors, which are more alike than single ones. f liars
spoil at most f buckets, so the rule needs as many buckets as it else needs vectors.

The result is the same for every order of the vectors, bit by bit. Time and memory: O(n d), and O(n^2 d) time for krum,
multi_krum and nnm.

Sources: Yin et al. 2018, arXiv:1803.01498 (median, trimmed mean); Pillutla et al. 2019, arXiv:1912.13445 (geometric
median); Blanchard et al. 2017, arXiv:1703.02757 (Krum); Allouah et al. 2023, arXiv:2302.01772 (NNM); Allouah et al.
2024, arXiv:2405.14432 (ARC); Karimireddy et al. 2022, arXiv:2006.09365 (bucketing).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgewise.core.keys import Key, derive
from edgewise.core.memory import Memory
from edgewise.core.stage import Combine, Rows, Rule

CoordinateRule = Literal["median", "trimmed_mean"]
RuleName = Literal["median", "trimmed_mean", "geometric_median", "krum", "multi_krum"]
Before = Literal["none", "nnm", "arc"]
_SMOOTHING = 1e-3  # Share of the median length below which a distance pulls the geometric median no harder.
_STEPS = 100  # of Weiszfeld at most.
_BLOCK = 1 << 16  # Coordinates at a time, so that sorting needs no second copy of all rows.


def least_rows(name: RuleName, byzantine: int) -> int:
    """Return the least number of vectors with which ``rule`` holds against ``byzantine`` arbitrary ones."""
    return 2 * byzantine + (3 if name in ("krum", "multi_krum") else 1)


def rule(name: RuleName, byzantine: int, before: Before = "none") -> Rule:
    """Make a rule: float64[n, d] with n >= ``least_rows`` -> [d]. The rule raises ValueError for fewer rows.

    Example:
        >>> rule("median", 1)(np.array([[1.0, 2.0], [2.0, 3.0], [900.0, -900.0]]))
        array([2., 2.])
    """

    def apply(rows: Rows) -> Rows:
        if rows.shape[0] < least_rows(name, byzantine):
            raise ValueError(f"{rows.shape[0]} rows are too few when {byzantine} of them may be arbitrary")
        if before == "none" and name in get_args(CoordinateRule):
            return _by_coordinates(rows, name, byzantine)  # Sorts by itself.
        rows = prepared(rows, byzantine, before)
        match name:
            case "geometric_median":
                return geometric_median(rows)
            case "krum" | "multi_krum":
                best = np.argsort(krum_scores(rows, rows.shape[0] - byzantine - 2), kind="stable")
                kept = 1 if name == "krum" else rows.shape[0] - byzantine
                return np.asarray(rows[np.sort(best[:kept])].mean(axis=0))
            case _:
                return _by_coordinates(rows, name, byzantine)

    return apply


def merge_of_rule(rule: Rule, bucket: int = 1) -> Combine:
    """Make a merge of a rule: it takes the rule of bodies and of heads, each in buckets of their own."""

    def apply(bodies: Rows, heads: Rows, memory: Memory, key: Key) -> tuple[Rows, Rows, Memory]:
        body, head = derive(key, "buckets", 0), derive(key, "buckets", 1)
        return rule(bucket_means(bodies, bucket, body)), rule(bucket_means(heads, bucket, head)), memory

    return apply


def bucket_means(rows: Rows, size: int, key: Key) -> Rows:
    """Take the means of random buckets of ``size`` vectors: float64[n, d] -> [ceil(n / size), d].

    The last bucket has the rest. Vectors are dealt in the order of a keyed digest, so that no order of arrival changes
    the buckets, and nobody without the key can choose a companion.
    """
    if size == 1:
        return rows
    order = np.argsort([hmac.digest(key, row.tobytes(), "sha256").hex() for row in rows], kind="stable")
    return np.stack([rows[order[i : i + size]].mean(axis=0) for i in range(0, len(rows), size)])


def prepared(rows: Rows, byzantine: int, before: Before) -> Rows:
    """Put the vectors in an order that does not depend on that of arrival, and take the step before a rule."""
    rows = rows[np.argsort([hashlib.sha256(row.tobytes()).hexdigest() for row in rows])]
    if before == "nnm":
        return nearest_means(rows, byzantine)
    return clip_longest_vectors(rows, byzantine) if before == "arc" else rows


def nearest_means(rows: Rows, byzantine: int) -> Rows:
    """Replace each vector by the mean of its n - f nearest ones, itself among them."""
    near = np.argsort(_squared_distances(rows), axis=1, kind="stable")[:, : rows.shape[0] - byzantine]
    return np.stack([rows[np.sort(one)].mean(axis=0) for one in near])


def clip_longest_vectors(rows: Rows, byzantine: int) -> Rows:
    """Cut the floor(2 f (n - f) / n) longest vectors to the length of the next one."""
    n, lengths = rows.shape[0], np.linalg.norm(rows, axis=1)
    bound = np.sort(lengths)[n - 1 - 2 * byzantine * (n - byzantine) // n]
    return np.asarray(rows * np.divide(bound, lengths, out=np.ones(n), where=lengths > bound)[:, None])


def geometric_median(rows: Rows) -> Rows:
    """Compute the point with the least sum of distances: v = sum w_i x_i / sum w_i, w_i = 1 / max(nu, |v - x_i|).

    nu is a thousandth of the median length, because updates have no scale of their own.
    """
    least = max(_SMOOTHING * float(np.median(np.linalg.norm(rows, axis=1))), np.finfo(np.float64).tiny)
    point = np.median(rows, axis=0)
    for _ in range(_STEPS):
        weights = 1.0 / np.maximum(least, np.linalg.norm(rows - point, axis=1))
        weights /= weights.max()  # At 1 / tiny their sum would overflow.
        moved = np.asarray(weights @ rows / weights.sum())
        if np.linalg.norm(moved - point) <= 1e-12 * np.linalg.norm(moved):
            break
        point = moved
    return point


def krum_scores(rows: Rows, nearest: int) -> NDArray[np.float64]:
    """Sum each vector's squared distances to its ``nearest`` other vectors."""
    return np.asarray(np.sort(_squared_distances(rows), axis=1)[:, 1 : nearest + 1].sum(axis=1))


def _squared_distances(rows: Rows) -> NDArray[np.float64]:
    """Compute |x_i - x_j|^2 for all pairs, float64[n, n]. Subtracting first keeps all digits."""
    n = rows.shape[0]
    out = np.zeros((n, n))
    for i in range(n - 1):
        for start in range(0, rows.shape[1], _BLOCK):
            apart = rows[i + 1 :, start : start + _BLOCK] - rows[i, start : start + _BLOCK]
            out[i, i + 1 :] += np.einsum("jk,jk->j", apart, apart)
    return out + out.T


def _by_coordinates(rows: Rows, name: RuleName, byzantine: int) -> Rows:
    """Apply the median or the trimmed mean to each coordinate."""
    out = np.empty(rows.shape[1])
    for start in range(0, out.size, _BLOCK):
        block = rows[:, start : start + _BLOCK]
        if name == "median":
            out[start : start + _BLOCK] = np.median(block, axis=0)
        else:
            trimmed = np.sort(block, axis=0)[byzantine : rows.shape[0] - byzantine]
            out[start : start + _BLOCK] = trimmed.mean(axis=0)
    return out
