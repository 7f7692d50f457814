"""Correlated noise: the stream is C^-1 z, sensitivity is the worst of all ways to take part, losses are published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.core.errors import BudgetError, CompositionError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space, Total
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum
from edgewise.privacy import audit_findings, matrix
from edgewise.privacy.accountant import epsilon, gaussian_epsilon
from edgewise.privacy.clip import clip
from edgewise.privacy.matrix import (
    SHIPPED,
    BltMatrix,
    choose_blt,
    correlated_noise,
    matrix_column,
    matrix_loss,
    matrix_sensitivity,
    participation_norm,
    start_noise_stream,
    step_noise_stream,
)

ANCHOR = BltMatrix((0.986072, 0.623144), (0.231319, 0.272538), 1000, 100, 10)

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
    assert matrix_sensitivity(ANCHOR) == pytest.approx(6.8421, abs=1e-4)
    assert matrix_loss(ANCHOR) == (pytest.approx(14.953, abs=5e-4), pytest.approx(12.402, abs=5e-4))


@pytest.mark.slow
@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_losses_of_simpler_matrices(shape: tuple[int, int, int]) -> None:
    n, gap, takes = shape
    identity, root, banded, *_ = PUBLISHED[shape]
    found = (matrix_loss(BltMatrix((), (), *shape)), dense_loss(square_root(n, n), gap, takes))
    for ours, theirs in zip(
        (*found, dense_loss(square_root(n, gap), gap, takes)), (identity, root, banded), strict=True
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=digits(b))


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("shape", PUBLISHED)
def test_shipped_factors_are_as_good_as_the_published_ones(shape: tuple[int, int, int]) -> None:
    *_, two, four = PUBLISHED[shape]
    best_two, best = choose_blt(*shape, buffers=2), choose_blt(*shape, buffers=4)
    assert (best_two.theta, best_two.w) in SHIPPED[shape]
    assert (best.theta, best.w) in SHIPPED[shape]
    assert matrix_loss(best_two) == (pytest.approx(two[0], abs=1e-3), pytest.approx(two[1], rel=1e-3))
    assert matrix_loss(best)[0] == pytest.approx(four[0], rel=1e-3)
    assert matrix_loss(best)[1] <= four[1] * 1.001


@pytest.mark.slow
def test_shipped_factors_beat_independent_noise_elsewhere_too() -> None:
    for shape in ((50, 1, 50), (300, 60, 5), (1500, 200, 7), (1, 1, 1)):
        found = choose_blt(*shape)
        assert matrix_loss(found)[0] <= matrix_loss(BltMatrix((), (), *shape))[0]
    assert matrix_loss(choose_blt(300, 60, 5))[0] < 0.6 * matrix_loss(BltMatrix((), (), 300, 60, 5))[0]


factors = st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), max_size=3)


@settings(max_examples=50, deadline=None)
@given(factors, st.integers(1, 12), st.integers(0, 2**31))
def test_the_stream_is_the_inverse_matrix_times_fresh_noise(
    some: list[tuple[float, float]], rounds: int, seed: int
) -> None:
    total = max(1.0, sum(w for _, w in some))
    blt = BltMatrix(tuple(t for t, _ in some), tuple(w / total * (1 - 1e-12) for _, w in some), rounds, 1, rounds)
    z = np.random.default_rng(seed).standard_normal((rounds, 3))
    state, out = start_noise_stream(blt, 3), []
    for row in z:
        before = state.buffers.copy()
        after, y = step_noise_stream(blt, state, row)
        assert np.array_equal(state.buffers, before), "a state is a value"
        state = after
        out.append(y)
    assert np.allclose(dense(matrix_column(blt)) @ np.array(out), z, atol=1e-9)
    assert state.buffers.shape == (len(some), 3), "the state does not grow with the rounds"


def test_the_sensitivity_is_the_worst_way_to_take_part() -> None:
    """By trying all: rounds at least ``gap`` apart, at most ``takes`` of them, updates of length 1 in any direction."""
    for theta, w in (((0.9, 0.4), (0.3, 0.5)), ((1.0,), (0.8,)), ((0.0,), (1.0,))):
        for gap, takes in ((1, 9), (2, 3), (3, 3), (4, 1)):
            blt = BltMatrix(theta, w, 9, gap, takes)
            c = dense(matrix_column(blt))
            worst = max(
                np.linalg.norm(c[:, list(rounds)].sum(1))  # no negative entries: equal directions are the worst
                for k in range(1, takes + 1)
                for rounds in combinations(range(9), k)
                if all(b - a >= gap for a, b in pairwise(rounds))
            )
            assert matrix_sensitivity(blt) == pytest.approx(worst, rel=1e-12)


def test_noise_is_for_its_rounds_and_no_more() -> None:
    blt = BltMatrix((0.5,), (0.5,), 2, 1, 2)
    state = start_noise_stream(blt, 1)
    for _ in range(2):
        state, _ = step_noise_stream(blt, state, np.ones(1))
    with pytest.raises(BudgetError) as caught:
        step_noise_stream(blt, state, np.ones(1))
    assert caught.value.code == "E-BUDGET"


def test_the_buffers_are_not_shown() -> None:
    assert "buffers" not in repr(start_noise_stream(ANCHOR, 2))


def test_a_run_is_one_gaussian() -> None:
    assert epsilon({matrix.correlated_noise_event(ANCHOR, 1.5): 1}, 1e-6) == gaussian_epsilon(1.5, 1e-6)


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
        BltMatrix(**{"theta": (0.9, 0.5), "w": (0.3, 0.3), "rounds": 5, "gap": 1, "takes": 5, **wrong})  # type: ignore[arg-type]


SPACE = Space(40_000, Quorum(2, 8))
RUN = BltMatrix((0.95, 0.5), (0.3, 0.2), 6, 3, 2)


def released(blt: BltMatrix, rounds: Sequence[int], z: float = 0.7, stop_at: int = -1) -> list[Vector]:
    """The totals of a run's rounds whose updates are all zero, as ``Pipeline.release`` gives them; ``stop_at``: after
    that round the server forgets all but what it has stored, and plays it a second time."""
    pipe = pipeline(SPACE, [clip(2.0)], plain_sum(), [correlated_noise(z, blt)])
    memory, out = pipe.start_memory(), []
    for number in rounds:
        turn = Turn(number, root(1), root(2))
        payload, _ = pipe.encode(np.zeros(SPACE.dim, np.float32), {}, 1.0, Memory(), turn)
        for again in (False, True) if number == stop_at else (False,):
            total = pipe.add(pipe.start_sum(), payload, turn)
            aggregate, after = pipe.release(total, turn, derive(root(9), number), memory)
            if again:
                assert np.array_equal(aggregate.mean, out.pop())
            out.append(aggregate.mean)
        memory = after
    return out


def test_what_a_run_releases_is_the_matrix_of_its_noise() -> None:
    """C times the releases is fresh noise again: of the promised size, and without a trace between rounds."""
    seen = np.array(released(RUN, range(6)), np.float64)
    fresh = dense(matrix_column(RUN)) @ seen / (0.7 * matrix_sensitivity(RUN) * 2.0)
    found = np.cov(fresh)
    assert np.abs(found - np.eye(6)).max() < 5 * sqrt(2 / SPACE.dim)
    assert abs(np.corrcoef(seen[0], seen[1])[0, 1]) > 0.1, "the releases themselves hang together"


def test_a_round_played_again_after_a_crash_adds_the_same_noise() -> None:
    for a, b in zip(released(RUN, range(6)), released(RUN, range(6), stop_at=3), strict=True):
        assert np.array_equal(a, b)


def test_rounds_that_were_abandoned_are_passed_over() -> None:
    """Rows of C^-1 z for the rounds that there were; later ones keep their distance to earlier ones."""
    seen = np.array(released(RUN, (0, 3, 5)), np.float64) / (0.7 * matrix_sensitivity(RUN) * 2.0)
    inverse = np.linalg.inv(dense(matrix_column(RUN)))[[0, 3, 5]]
    expected = inverse @ inverse.T
    assert np.abs(np.cov(seen) - expected).max() < 0.03 * expected.max()


def test_no_round_twice_and_none_beyond_the_last() -> None:
    for rounds in ((0, 1, 1), (2, 1), (6,)):
        with pytest.raises(BudgetError) as caught:
            released(RUN, rounds)
        assert caught.value.code == "E-BUDGET"


def test_noise_without_a_clip_is_refused() -> None:
    with pytest.raises(CompositionError) as caught:
        pipeline(SPACE, [], plain_sum(), [correlated_noise(1.0, RUN)])
    assert caught.value.code == "E-NOISE-NOCLIP"


def attacked(blt: BltMatrix, z: float) -> float:
    """A lower bound of mu from a run in which one device is in all its rounds with the longest update, or with zeros.

    Every coordinate is a run of its own. The attacker knows C, whitens the releases with it, and adds up what lies in
    the direction in which the device moves them: the best test there is.
    """
    own = dense(matrix_column(blt))
    worst = own[:, [j * blt.gap for j in range(blt.takes)]].sum(1)
    scores = []
    for key, update in (("without", 0.0), ("with", 1.0)):
        post, space = (
            correlated_noise(z, blt),
            Total(SPACE.but(l2=1.0, clipped=True), 1.0, 0.0, True, SPACE.dim, step=0.0),
        )
        memory, seen = post.init(space, SPACE.dim), []
        for number in range(blt.rounds):
            mine = update if number % blt.gap == 0 and number // blt.gap < blt.takes else 0.0
            x = np.full(SPACE.dim, mine)
            x, memory = post.apply(x, space, number, derive(root(4), key, number), memory)
            seen.append(x)
        scores.append(worst @ (own @ np.array(seen)) / np.linalg.norm(worst))
    return audit_findings.mechanism_finding("run", 1.0 / z, 1e-5, scores[0], scores[1]).lower


@pytest.mark.slow
def test_the_best_attack_on_a_whole_run_finds_what_is_accounted_and_no_more() -> None:
    assert 0.93 < attacked(RUN, 1.0) <= 1.0
    assert 0.46 < attacked(RUN, 2.0) <= 0.5


def test_the_attack_catches_a_sensitivity_of_a_single_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "matrix_sensitivity", lambda blt: float(np.linalg.norm(matrix_column(blt))))
    assert attacked(RUN, 1.0) > 1.2


def test_the_attack_catches_noise_that_is_taken_back_too_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the weights: less noise in every sum of rounds than was accounted."""
    step_of = matrix.step_noise_stream
    monkeypatch.setattr(
        matrix, "step_noise_stream", lambda blt, state, z: step_of(replace(blt, w=(0.6, 0.39)), state, z)
    )
    assert attacked(RUN, 1.0) > 1.1
