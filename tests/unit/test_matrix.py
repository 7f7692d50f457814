"""Correlated noise: the stream is C^-1 z, sensitivity is the worst of all ways to take part, losses are published."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.core.errors import BudgetError
from edgewise.privacy import matrix
from edgewise.privacy.accountant import epsilon, gaussian
from edgewise.privacy.matrix import SHIPPED, Blt, choose, column, loss, participation_norm, sensitivity, start, step

ANCHOR = Blt((0.986072, 0.623144), (0.231319, 0.272538), 1000, 100, 10)

# rounds, gap, takes -> (largest, rms) loss of: identity, square root, banded square root, 2 buffers, 4 buffers.
# Independent noise has rms sqrt(takes (rounds + 1) / 2) exactly: 70.746 in the second row.
PUBLISHED = {
    (1000, 1000, 1): ((31.62, 22.37), (3.27, 3.10), (3.27, 3.10), (3.321, 3.133), (3.265, 3.103)),
    (1000, 100, 10): ((100, 70.7), (16.54, 15.72), (15.69, 12.10), (14.953, 12.402), (14.884, 12.926)),
    (2000, 400, 5): ((100, 70.7), (9.88, 9.42), (9.62, 7.95), (9.502, 8.304), (9.431, 8.525)),
    (2000, 100, 20): ((200, 141), (32.1, 30.6), (29.8, 22.2), (27.016, 21.698), (26.928, 22.751)),
}


def dense(first: np.ndarray) -> np.ndarray:
    """The lower triangular Toeplitz matrix."""
    n = first.size
    lag = np.arange(n)[:, None] - np.arange(n)
    return np.where(lag >= 0, first[np.maximum(lag, 0)], 0.0)


def digits(value: float) -> float:
    """Half a unit of the last printed place, and a little."""
    return 0.51 * 10.0 ** -len(str(value).partition(".")[2])


def dense_loss(first: np.ndarray, gap: int, takes: int) -> tuple[float, float]:
    """Losses by linear algebra, for matrices that are not of our kind."""
    rows = np.cumsum(np.cumsum(np.linalg.solve(dense(first), np.eye(1, first.size)[0])) ** 2)
    own = participation_norm(first, gap, takes)
    return own * sqrt(rows[-1]), own * sqrt(rows.mean())


def square_root(n: int, bands: int) -> np.ndarray:
    """The square root of the prefix sum, cut off after some bands."""
    first = np.cumprod(np.concatenate([[1.0], (2.0 * np.arange(1, n) - 1) / (2.0 * np.arange(1, n))]))
    return np.where(np.arange(n) < bands, first, 0.0)


def test_published_sensitivity() -> None:
    assert sensitivity(ANCHOR) == pytest.approx(6.8421, abs=1e-4)
    assert loss(ANCHOR) == (pytest.approx(14.953, abs=5e-4), pytest.approx(12.402, abs=5e-4))


@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_losses_of_simpler_matrices(shape: tuple[int, int, int]) -> None:
    n, gap, takes = shape
    identity, root, banded, *_ = PUBLISHED[shape]
    found = (loss(Blt((), (), *shape)), dense_loss(square_root(n, n), gap, takes))
    for ours, theirs in zip(
        (*found, dense_loss(square_root(n, gap), gap, takes)), (identity, root, banded), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=digits(b))


@pytest.mark.parametrize("shape", PUBLISHED)
def test_shipped_factors_are_as_good_as_the_published_ones(shape: tuple[int, int, int]) -> None:
    *_, two, four = PUBLISHED[shape]
    best_two, best = choose(*shape, buffers=2), choose(*shape, buffers=4)
    assert (best_two.theta, best_two.w) in SHIPPED[shape]
    assert (best.theta, best.w) in SHIPPED[shape]
    assert loss(best_two) == (pytest.approx(two[0], abs=1e-3), pytest.approx(two[1], rel=1e-3))
    assert loss(best)[0] == pytest.approx(four[0], rel=1e-3)
    assert loss(best)[1] <= four[1] * 1.001


def test_shipped_factors_beat_independent_noise_elsewhere_too() -> None:
    for shape in ((50, 1, 50), (300, 60, 5), (1500, 200, 7), (1, 1, 1)):
        found = choose(*shape)
        assert loss(found)[0] <= loss(Blt((), (), *shape))[0]
    assert loss(choose(300, 60, 5))[0] < 0.6 * loss(Blt((), (), 300, 60, 5))[0]


factors = st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), max_size=3)


@settings(max_examples=50, deadline=None)
@given(factors, st.integers(1, 12), st.integers(0, 2**31))
def test_the_stream_is_the_inverse_matrix_times_fresh_noise(
    some: list[tuple[float, float]], rounds: int, seed: int
) -> None:
    total = max(1.0, sum(w for _, w in some))
    blt = Blt(tuple(t for t, _ in some), tuple(w / total * (1 - 1e-12) for _, w in some), rounds, 1, rounds)
    z = np.random.default_rng(seed).standard_normal((rounds, 3))
    state, out = start(blt, 3), []
    for row in z:
        before = state.buffers.copy()
        after, y = step(blt, state, row)
        assert np.array_equal(state.buffers, before), "a state is a value"
        state = after
        out.append(y)
    assert np.allclose(dense(column(blt)) @ np.array(out), z, atol=1e-9)
    assert state.buffers.shape == (len(some), 3), "the state does not grow with the rounds"


def test_the_sensitivity_is_the_worst_way_to_take_part() -> None:
    """By trying all: rounds at least ``gap`` apart, at most ``takes`` of them, updates of length 1 in any direction."""
    for theta, w in (((0.9, 0.4), (0.3, 0.5)), ((1.0,), (0.8,)), ((0.0,), (1.0,))):
        for gap, takes in ((1, 9), (2, 3), (3, 3), (4, 1)):
            blt = Blt(theta, w, 9, gap, takes)
            c = dense(column(blt))
            worst = max(
                np.linalg.norm(c[:, list(rounds)].sum(1))  # no negative entries: equal directions are the worst
                for k in range(1, takes + 1)
                for rounds in combinations(range(9), k)
                if all(b - a >= gap for a, b in pairwise(rounds))
            )
            assert sensitivity(blt) == pytest.approx(worst, rel=1e-12)


def test_noise_is_for_its_rounds_and_no_more() -> None:
    blt = Blt((0.5,), (0.5,), 2, 1, 2)
    state = start(blt, 1)
    for _ in range(2):
        state, _ = step(blt, state, np.ones(1))
    with pytest.raises(BudgetError) as caught:
        step(blt, state, np.ones(1))
    assert caught.value.code == "E-BUDGET"


def test_the_buffers_are_not_shown() -> None:
    assert "buffers" not in repr(start(ANCHOR, 2))


def test_a_run_is_one_gaussian() -> None:
    assert epsilon({matrix.event(ANCHOR, 1.5): 1}, 1e-6) == gaussian(1.5, 1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"theta": (1.01, 0.5)},  # a column that rises
        {"theta": (-0.1, 0.5)},  # and one with negative entries
        {"w": (0.8, 0.3)},
        {"w": (-0.1, 0.3)},
        {"theta": (0.5,)},
        {"rounds": 0},
        {"gap": 0},
        {"takes": 0},
    ],
)
def test_matrices_for_which_the_sensitivity_is_not_known_do_not_exist(
    wrong: dict[str, tuple[float, ...] | int],
) -> None:
    with pytest.raises(ValueError, match="must"):
        Blt(**{"theta": (0.9, 0.5), "w": (0.3, 0.3), "rounds": 5, "gap": 1, "takes": 5, **wrong})  # type: ignore[arg-type]
