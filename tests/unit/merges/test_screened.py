"""A screened mean: who is left out, what liars can still do, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import CompositionError
from edgewise.core.keys import root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.merges.screened import near_mean, screened


@pytest.mark.slow
def test_far_updates_are_left_out_and_the_others_count_in_full() -> None:
    rng = np.random.default_rng(2)
    honest = rng.standard_normal((8, 70_000))
    rows = np.vstack([honest[:3], -40 * honest[:3], honest[3:]])
    assert near_mean(rows, 3.0) == pytest.approx(honest.mean(0))
    assert near_mean(rows[::-1], 3.0).tobytes() == near_mean(rows, 3.0).tobytes()
    assert near_mean(honest, 3.0) == pytest.approx(honest.mean(0)), "nobody is far: the plain mean"
    assert near_mean(rows, 1e6) == pytest.approx(rows.mean(0))
    assert near_mean(np.ones((3, 4)), 1.0).tolist() == [1.0] * 4, "no distances at all"


@pytest.mark.parametrize("scale", [0.5, 2.0, 5.0, 1e3, 1e9])
def test_liars_cannot_move_it_beyond_the_limit(scale: float) -> None:
    rng = np.random.default_rng(3)
    honest = rng.standard_normal((7, 30))
    rows = np.vstack([honest, np.full((6, 30), scale)])
    centre = np.median(rows, axis=0)
    assert (centre >= honest.min(0)).all()
    assert (centre <= honest.max(0)).all()
    largest = np.linalg.norm(honest - centre, axis=1).max()
    assert np.linalg.norm(near_mean(rows, 3.0) - centre) <= 3.0 * largest


def test_metrics_are_trimmed_and_a_minority_of_honest_devices_is_refused() -> None:
    merge = screened(1)
    assert merge.combine is not None
    body, head, _ = merge.combine(np.ones((3, 2)), np.array([[1.0], [2.0], [900.0]]), Memory(), root(1))
    assert (body.tolist(), head.tolist()) == ([1.0, 1.0], [2.0])
    with pytest.raises(CompositionError, match=r"E-BYZANTINE.*screened.*against 2 dishonest.*needs 5 updates"):
        pipeline(Space(2, Quorum(4, 20)), [], screened(2))
