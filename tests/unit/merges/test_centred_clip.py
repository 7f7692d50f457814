"""Centred clipping and buckets: values by another library and by hand, and what carries over to the next round."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge
from edgewise.merges import robust
from edgewise.merges.centred_clip import centred_clip, clipped_around
from edgewise.merges.robust_mean import robust_mean

FOUR = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [100.0, -50.0, 10.0]])  # the last one lies
TURN = Turn(0, root(1), root(2))


def test_by_another_library() -> None:
    """The value of byzfl 0.0.11 for CenteredClipping(L=3, tau=5), from zero."""
    found = clipped_around(np.zeros(3), FOUR, 5.0, 3)
    assert found == pytest.approx([4.8873, 3.3381, 5.24753], rel=1e-5)


def test_by_hand() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]])
    assert clipped_around(np.zeros(2), rows, 2.5, 1) == pytest.approx([0.5, 1.0])  # (1.5, 2) + (0, 1) + (0, 0)
    assert clipped_around(np.zeros(2), rows, 0.0, 1) == pytest.approx([0.2, 0.6])  # tau = 1: (.6, .8) + (0, 1)
    assert clipped_around(np.array([3.0, 4.0]), rows[:1], 1.0, 5).tolist() == [3.0, 4.0]
    assert clipped_around(np.zeros(2), np.zeros((3, 2)), 0.0, 1).tolist() == [0.0, 0.0]


def test_a_liar_moves_the_result_by_a_share_of_the_radius() -> None:
    honest = np.random.default_rng(1).standard_normal((9, 6))
    for far in (1e3, 1e30):
        lie = np.full(6, far)
        moved = clipped_around(np.zeros(6), np.vstack([honest, lie]), 2.0, 1)
        without = clipped_around(np.zeros(6), np.vstack([honest, np.zeros(6)]), 2.0, 1)
        assert np.linalg.norm(moved - without) == pytest.approx(2.0 / 10)


def test_few_liars_cannot_raise_the_median_radius_above_an_honest_distance() -> None:
    honest = np.random.default_rng(1).standard_normal((7, 6))
    found = clipped_around(np.zeros(6), np.vstack([honest, np.full((6, 6), 1e9)]), 0.0, 1)
    assert np.linalg.norm(found) <= np.linalg.norm(honest, axis=1).max()


@pytest.mark.parametrize(("n", "size", "number"), [(6, 2, 3), (7, 2, 4), (7, 3, 3), (3, 5, 1), (4, 1, 4)])
def test_buckets_are_means_of_all_updates_once(n: int, size: int, number: int) -> None:
    """Powers of two, so that the sum of a bucket tells who is in it."""
    rows = np.eye(n)
    found = robust.bucket_means(rows, size, root(1))
    assert found.shape == (number, n)
    members = found > 0
    assert members.sum(axis=0).tolist() == [1] * n, "each is in one bucket"
    assert sorted(members.sum(axis=1))[1:] == [min(size, n)] * (number - 1)
    assert found.sum(axis=1) == pytest.approx(1.0), "a mean"
    again = robust.bucket_means(rows[::-1], size, root(1))
    assert np.sort(again, axis=0).tobytes() == np.sort(found, axis=0).tobytes(), "no order of arrival changes them"


def test_the_companion_of_an_update_changes_with_the_key() -> None:
    pairs = set()
    for i in range(60):
        found = robust.bucket_means(np.eye(8), 2, derive(root(1), i))
        pairs |= {tuple(np.flatnonzero(row)) for row in found if row[0] > 0}
    assert len(pairs) == 7, "any other may be the companion"


@pytest.mark.parametrize(
    ("merge", "least"),
    [(robust_mean(2, bucket=3), 13), (robust_mean(1, "krum", bucket=2), 9), (centred_clip(2, bucket=2), 9)],
    ids=lambda x: getattr(x, "name", x),
)
def test_liars_must_not_outvote_buckets(merge: Merge, least: int) -> None:
    """2 f liars spoil as many buckets. There must be one more, which may hold a single update."""
    space = Space(6, Quorum(least, 20))
    pipe = pipeline(space, [], merge)
    xs = np.random.default_rng(1).standard_normal((least, 6)).astype(np.float32)
    assert np.isfinite(played(pipe, xs, Memory())[0]).all()
    with pytest.raises(CompositionError, match=rf"E-BYZANTINE.*buckets of.*needs {least} updates"):
        pipeline(space.but(quorum=Quorum(least - 1, 20)), [], merge)


def played(pipe: Pipeline, xs: np.ndarray, memory: Memory, loss: float = 0.0) -> tuple[np.ndarray, float, Memory]:
    total = pipe.start_sum()
    head = {"loss": loss} if pipe.spaces[0].head else {}
    for i, x in enumerate(xs):
        payload, _ = pipe.encode(x, head, 1.0, pipe.init(), Turn(0, root(1), derive(root(2), i)))
        total = pipe.add(total, payload, TURN)
    found, memory = pipe.release(total, TURN, root(3), memory)
    return found.mean, found.head.get("loss", 0.0), memory


def test_the_centre_is_the_last_result_and_metrics_have_none() -> None:
    pipe = pipeline(Space(6, Quorum(5, 5), head=("loss",), head_l2=40.0), [], centred_clip(1, radius=0.5))
    x = np.full((5, 6), 2.0, np.float32)
    memory, distance = Memory(), np.linalg.norm(x[0])
    for number in range(1, 4):
        mean, loss, memory = played(pipe, x, memory, loss=9.0)
        assert np.linalg.norm(mean) == pytest.approx(0.5 * number), "half a unit nearer in each round"
        assert loss == 9.0
    for _ in range(20):
        mean, _, memory = played(pipe, x, memory)
    assert np.linalg.norm(mean) == pytest.approx(distance), "it arrives and stays"


def test_a_robust_mean_keeps_nothing() -> None:
    pipe = pipeline(Space(6, Quorum(3, 5)), [], robust_mean(1))
    assert not played(pipe, np.ones((3, 6), np.float32), Memory())[2]
