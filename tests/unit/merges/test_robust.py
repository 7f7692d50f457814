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
from edgewise.engine.rung_groups import deal
from edgewise.merges.robust import RuleName, rule
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import noise
from edgewise.secagg.merge import grouped, secure_sum

RULES: list[RuleName] = ["median", "trimmed_mean"]
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


@pytest.mark.parametrize("name", RULES)
def test_fewer_rows_than_the_rule_needs(name: RuleName) -> None:
    with pytest.raises(ValueError, match="4 rows"):
        rule(name, 2)(np.zeros((4, 3)))


def test_groups_are_random_disjoint_and_even() -> None:
    names = [f"d{i}" for i in range(23)]
    dealt = deal(names, 5, root(1))
    assert sorted(d for group in dealt for d in group) == sorted(names)
    assert sorted(len(group) for group in dealt) == [4, 4, 5, 5, 5]
    assert deal(names[::-1], 5, root(1)) == dealt
    assert deal(names, 5, root(2)) != dealt
    assert deal(names, 1, root(1)) == [names]
    together = sum(any({"d0", "d1"} <= set(g) for g in deal(names, 5, derive(root(1), i))) for i in range(400))
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
