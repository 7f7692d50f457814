"""Robust rules between vectors of which some may be arbitrary, and sums of groups under them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.project.sketch import sketch
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Merge
from edgewise.engine.rung_groups import deal_into_groups
from edgewise.merges import robust
from edgewise.merges.robust import Before, RuleName, rule
from edgewise.merges.robust_mean import robust_mean
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.secagg.merge import grouped, secure_sum

RULES: list[RuleName] = ["median", "trimmed_mean"]  # by coordinates
ALL: list[RuleName] = [*RULES, "geometric_median", "krum", "multi_krum"]
BEFORE: list[Before] = ["none", "nnm", "arc"]
FOUR = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [100.0, -50.0, 10.0]])  # the last one lies
TURN = Turn(0, root(1), root(2))
SPACE = Space(40, Quorum(3, 4), head=("loss",), head_l2=20.0)


@pytest.mark.parametrize("name", RULES)
@given(data=st.data())
def test_whatever_some_send_the_result_is_within_the_range_of_the_others(name: RuleName, data: st.DataObject) -> None:
    f = data.draw(st.integers(1, 3))
    honest = data.draw(hnp.arrays(np.float64, (f + 1 + data.draw(st.integers(0, 3)), 5), elements=st.floats(-1e3, 1e3)))
    wrong = data.draw(hnp.arrays(np.float64, (f, 5), elements=st.floats(-1e30, 1e30)))
    rows = np.concatenate([honest, wrong])[data.draw(st.permutations(range(len(honest) + f)))]
    found = rule(name, f)(rows)
    slack = 1e-9 * np.abs(honest).max(0)
    assert (found >= honest.min(0) - slack).all()
    assert (found <= honest.max(0) + slack).all()


def test_by_hand() -> None:
    rows = np.array([[0.0, 5.0], [1.0, 1.0], [2.0, -9.0], [30.0, 2.0]])
    assert rule("median", 1)(rows).tolist() == [1.5, 1.5]
    assert rule("trimmed_mean", 1)(rows).tolist() == [1.5, 1.5]
    assert rule("trimmed_mean", 1)(rows[:3]).tolist() == [1.0, 1.0]
    assert rule("median", 1)(np.zeros((3, 0))).shape == (0,)
    big = np.random.default_rng(1).standard_normal((5, (1 << 16) + 3))
    np.testing.assert_array_equal(rule("median", 2)(big), np.median(big, axis=0))
    np.testing.assert_allclose(rule("trimmed_mean", 1)(big), np.sort(big, axis=0)[1:4].mean(0))


def test_by_another_library() -> None:
    """Values of byzfl 0.0.11 for these rows and f = 1. Its Krum looks at one neighbour more than the paper's."""
    assert rule("median", 1)(FOUR).tolist() == rule("trimmed_mean", 1)(FOUR).tolist() == [5.5, 3.5, 7.5]
    assert robust.nearest_means(FOUR, 1)[-1] == pytest.approx([37.0, -37 / 3, 25 / 3])
    assert robust.clip_longest_vectors(FOUR, 1)[-1] == pytest.approx([12.4084, -6.2042, 1.2408], rel=1e-4)
    assert (robust.clip_longest_vectors(FOUR, 1)[:3] == FOUR[:3]).all()
    assert robust.geometric_median(FOUR) == pytest.approx([4.084, 4.95266, 6.00398], rel=2e-2)  # it smooths below .1
    scores = robust.krum_scores(FOUR, 2)
    assert scores[:3].tolist() == [27.0 + 108.0, 27.0 + 27.0, 27.0 + 108.0]
    assert FOUR[scores.argmin()].tolist() == [4.0, 5.0, 6.0]


def test_the_geometric_median_has_the_least_sum_of_distances() -> None:
    def far(point: np.ndarray) -> float:
        return float(np.linalg.norm(FOUR * 1e-4 - point, axis=1).sum())

    found = rule("geometric_median", 1)(FOUR * 1e-4)
    rng = np.random.default_rng(1)
    assert all(far(found) <= far(found + 1e-6 * rng.standard_normal(3)) + 1e-9 for _ in range(100))
    assert rule("geometric_median", 1)(np.zeros((3, 2))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
def test_no_order_changes_a_bit_and_liars_move_little(name: RuleName, before: Before, data: st.DataObject) -> None:
    """Honest vectors lie in a ball of radius 1. However far liars are, the result stays within a few radii of it."""
    n, f = 11, data.draw(st.integers(1, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    honest = rng.uniform(-1.0, 1.0, (n - f, 6)) / np.sqrt(6) + 3.0
    far = data.draw(st.floats(-1e12, 1e12)) * rng.standard_normal(6)
    rows = np.concatenate([honest, np.tile(far, (f, 1))])
    found = rule(name, f, before)(rows)
    assert found.tobytes() == rule(name, f, before)(rows[data.draw(st.permutations(range(n)))]).tobytes()
    assert np.linalg.norm(found - honest.mean(axis=0)) <= 8.0


@pytest.mark.parametrize("before", ["nnm", "arc"])
@pytest.mark.parametrize("name", ALL)
def test_rules_of_nothing_have_no_values(name: RuleName, before: Before) -> None:
    assert rule(name, 1, before)(np.zeros((5, 0))).shape == (0,)


@pytest.mark.parametrize(("name", "least"), [("trimmed_mean", 5), ("geometric_median", 5), ("krum", 7)])
def test_a_round_that_liars_could_outvote_is_refused(name: RuleName, least: int) -> None:
    assert pipeline(SPACE.but(quorum=Quorum(least, 9)), [], robust_mean(2, name)).merge.combine is not None
    with pytest.raises(CompositionError, match=rf"E-BYZANTINE.*needs {least} updates.*may have {least - 1}"):
        pipeline(SPACE.but(quorum=Quorum(least - 1, 9)), [], robust_mean(2, name))


@pytest.mark.parametrize("name", ALL)
def test_fewer_rows_than_the_rule_needs(name: RuleName) -> None:
    with pytest.raises(ValueError, match="4 rows"):
        rule(name, 2)(np.zeros((4, 3)))


def test_groups_are_random_disjoint_and_even() -> None:
    names = [f"d{i}" for i in range(23)]
    dealt = deal_into_groups(names, 5, root(1))
    assert sorted(d for group in dealt for d in group) == sorted(names)
    assert sorted(len(group) for group in dealt) == [4, 4, 5, 5, 5]
    assert deal_into_groups(names[::-1], 5, root(1)) == dealt
    assert deal_into_groups(names, 5, root(2)) != dealt
    assert deal_into_groups(names, 1, root(1)) == [names]
    together = sum(
        any({"d0", "d1"} <= set(g) for g in deal_into_groups(names, 5, derive(root(1), i))) for i in range(400)
    )
    assert 40 < together < 110  # 4/22 of 400 = 72.7


def chain(merge: Merge) -> Pipeline:
    return pipeline(SPACE, [weigh(10.0), clip(8.0), clamp(4.0), quantize(12, "shared"), wrap()], merge)


def released(pipe: Pipeline, xs: list[np.ndarray]) -> tuple[np.ndarray, float]:
    total = pipe.start_sum()
    for i, x in enumerate(xs):
        payload, _ = pipe.encode(x.astype(np.float32), {"loss": float(i)}, 10.0, Memory(), TURN)
        total = pipe.add(total, payload, TURN)
    out, _ = pipe.release(total, TURN, root(3), Memory())
    assert out.n == len(xs)
    return out.mean, out.head["loss"]


def test_a_release_is_the_rule_over_the_means_of_groups() -> None:
    xs = list(np.random.default_rng(2).standard_normal((6, 40)) * 0.3)
    pipe = chain(grouped(3, 1))
    mean, loss = released(pipe, xs)  # Contributions go to the groups in turn.
    pairs = [(xs[i] + xs[i + 3]) / 2 for i in range(3)]
    np.testing.assert_allclose(mean, np.median(pairs, axis=0), atol=3 * 4.0 / 2**11)
    assert loss == pytest.approx(2.5)  # of 1.5, 2.5, 3.5
    assert pipe.total.sensitivity == float("inf")
    assert not pipe.total.visible
    same, _ = released(chain(grouped(3, 1, "trimmed_mean")), xs)
    np.testing.assert_allclose(same, mean, atol=1e-6)  # of three, without the ends


def test_one_liar_moves_a_sum_anywhere_and_the_groups_hardly() -> None:
    xs = [np.full(40, 0.1) for _ in range(9)]
    liar = [*xs[:8], np.full(40, -4.0)]
    assert abs(released(chain(secure_sum()), liar[-4:])[0] - 0.1).max() > 0.3
    assert abs(released(chain(grouped(3, 1)), liar)[0] - 0.1).max() < 0.01


def test_what_does_not_go_with_groups() -> None:
    for wrong in ((2, 1), (4, 2), (3, 0)):
        with pytest.raises(RecipeError) as refused:
            grouped(*wrong)
        assert refused.value.code == "E-VALUE"
    for least, byzantine in ((1, 1), (2, 1), (3, 2)):  # one honest device, alone with the others
        space = SPACE.but(quorum=Quorum(least, 4))
        with pytest.raises(CompositionError) as caught:
            pipeline(space, [clip(1.0), quantize(8, "shared"), wrap()], grouped(5, byzantine))
        assert caught.value.code == "E-ROBUST-SECAGG"
    grid = [clamp(1.0), quantize(8, "shared")]
    for served in ([sketch(4.0), *grid], [feedback(grid, form="ef21")]):
        with pytest.raises(CompositionError, match="server") as caught:
            pipeline(SPACE, [clip(1.0), *served, wrap()], grouped(3, 1))
        assert caught.value.code == "E-COMBO"
    with pytest.raises(CompositionError) as caught:
        pipeline(SPACE, [clip(1.0), quantize(8, "shared"), wrap()], grouped(3, 1), [noise(1.0)])
    assert caught.value.code == "E-COMBO"
