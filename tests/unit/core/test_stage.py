"""Pipeline: weighted means, order independence, posts, refusals, both sums, and noise."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np
import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Grid, Kind, Quorum, Space, Total
from edgewise.core.stage import Aggregate, Post, Stage
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy.clip import clamp, clip
from edgewise.privacy.noise import secret_normals

DIM = 50
START = Space(DIM, Quorum(2, 16), head=("loss",), head_l2=20.0)
BARE = Space(DIM, Quorum(2, 16))
TURN = Turn(0, root(1), root(2))


def _xs(n: int, seed: int = 0) -> list[Vector]:
    return list(np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32))


def _release(pipe: Pipeline, xs: list[Vector], counts: list[float] | None = None) -> Aggregate:
    total = pipe.start_sum()
    for i, x in enumerate(xs):
        head = {"loss": float(i)} if pipe.spaces[0].head else {}
        payload, _ = pipe.encode(x, head, counts[i] if counts else 1.0, pipe.init(), TURN)
        total = pipe.add(total, payload, TURN)
    return pipe.release(total, TURN, root(3), Memory())[0]


def test_weighted_mean_is_by_capped_counts() -> None:
    xs, counts = _xs(4), [10.0, 40.0, 1000.0, 0.0]
    out = _release(pipeline(START, [weigh(100.0)], plain_sum()), xs, counts)
    w = np.array([0.1, 0.4, 1.0, 0.0])
    np.testing.assert_allclose(out.mean, np.average(xs, axis=0, weights=w), atol=1e-6)
    assert out.weight == pytest.approx(1.5)
    assert out.head["loss"] == pytest.approx((0.4 + 2.0) / 1.5)


def test_nobody_had_anything_to_say() -> None:
    out = _release(pipeline(START, [weigh(100.0)], plain_sum()), _xs(2), [0.0, 0.0])
    assert not out.mean.any()
    assert (out.head, out.weight) == ({"loss": 0.0}, 0.0)


def test_ring_sum_wraps_and_refuses_residues_outside() -> None:
    merge, space = ring_sum(), BARE.but(grid=Grid(Kind.RING, modulus=1 << 12))
    acc = merge.init(space)
    for v in (4000, 4000, 96 + 96):
        acc = merge.add(acc, Payload(np.full(DIM, v, np.uint32), np.zeros(0)), space)
    assert (merge.finish(acc, space).body == 0).all()
    with pytest.raises(DecodeError):
        merge.add(acc, Payload(np.full(DIM, 4096, np.uint32), np.zeros(0)), space)


def test_ring_release_is_the_mean_on_the_grid() -> None:
    xs = _xs(6)
    stages = [clip(2.0), clamp(0.5), quantize(12, "shared"), wrap(20)]
    out = _release(pipeline(START, stages, ring_sum()), xs)
    clipped = [np.clip(x * min(1, 2 / np.linalg.norm(x)), -0.5, 0.5) for x in xs]
    np.testing.assert_allclose(out.mean, np.mean(clipped, axis=0), atol=0.5 / 2047)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_updates_never_leave(bad: float) -> None:
    pipe = pipeline(START, [], plain_sum())
    x = np.zeros(DIM, np.float32)
    x[3] = bad
    with pytest.raises(TrainingError) as caught:
        pipe.encode(x, {"loss": 1.0}, 1.0, Memory(), TURN)
    assert caught.value.code == "E-NAN"


def test_overflow_is_refused_on_the_device() -> None:
    x = np.full(DIM, 3e38, np.float32)
    owed = Memory().put("stage", 0, Memory({"residual": x, "last": np.array([-1])}))
    for stage, memory in ((random_k(0.1), Memory()), (feedback([clip(1.0)]), owed)):
        with pytest.raises(TrainingError) as caught:
            pipeline(BARE, [stage], plain_sum()).encode(x, {}, 1.0, memory, TURN)
        assert caught.value.code == "E-RANGE"


def test_misuse() -> None:
    pipe = pipeline(START, [], plain_sum())
    with pytest.raises(ValueError, match="shape"):
        pipe.encode(np.zeros(3, np.float32), {"loss": 1.0}, 1.0, Memory(), TURN)
    with pytest.raises(ValueError, match="nothing to release"):
        pipe.release(pipe.start_sum(), TURN, root(3), Memory())
    with pytest.raises(ValueError, match="count"):
        pipeline(START, [weigh(1.0)], plain_sum()).encode(
            np.zeros(DIM, np.float32), {"loss": 1.0}, -1.0, Memory(), TURN
        )


def test_memory_of_more_than_ten_stages_stays_apart() -> None:
    """The memories of stage 1 and stage 11 have different paths in a store."""

    def counting(i: int) -> Stage:
        def encode(p: Payload, m: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
            assert m["id"][0] == i
            return p, m.plus({"rounds": m["rounds"] + 1})

        return Stage(
            f"s{i}",
            lambda s: s,
            encode,
            lambda p, s, t: p,
            lambda b, a: "counts",
            lambda s: Memory({"id": np.array([i]), "rounds": np.zeros(1)}),
        )

    pipe = pipeline(START, [counting(i) for i in range(12)], plain_sum())
    memory = pipe.init()
    for _ in range(3):
        _, memory = pipe.encode(_xs(1)[0], {"loss": 1.0}, 1.0, memory, TURN)
    assert all(memory.child("stage", i)["rounds"][0] == 3 for i in range(12))


def test_posts_see_body_and_head_as_one_vector() -> None:
    seen: list[tuple[int, ...]] = []

    def apply(x: Vector, total: Total, round: int, entropy: bytes, memory: Memory) -> tuple[Vector, Memory]:
        seen.append(x.shape)
        return x + np.float32(1.0), memory

    pipe = pipeline(START, [], plain_sum(), [Post("plus one", lambda b, a: "adds one", lambda t: t, apply)])
    out = _release(pipe, [np.zeros(DIM, np.float32)])
    assert seen == [(DIM + 1,)]
    assert (out.mean == 1.0).all()
    assert out.head == {"loss": 1.0}


@pytest.mark.parametrize("n", [0, 1, 2, 1001, (1 << 19) + 3])
def test_normals(n: int) -> None:
    a = secret_normals(derive(root(1), n), n)
    assert a.shape == (n,)
    assert np.isfinite(a).all()
    assert (a == secret_normals(derive(root(1), n), n)).all()
    if n > 1000:
        assert abs(a.mean()) < 5 / sqrt(n)
        assert abs(a.var() - 1) < 5 * sqrt(2 / n)
        assert abs((a**4).mean() - 3) < 5 * sqrt(96 / n)
        assert abs(np.corrcoef(a[: n // 2], a[n // 2 : 2 * (n // 2)])[0, 1]) < 5 / sqrt(n / 2)


@pytest.mark.parametrize("factor", [0.1, 0.99999999, 1.0, 1.00000001, 1e20])
def test_clip_really_bounds(factor: float) -> None:
    g = np.random.default_rng(1)
    for _ in range(50):
        x = (g.standard_t(2, 3000)).astype(np.float32)
        bound = float(np.linalg.norm(x.astype(np.float64))) / factor
        y = clip(bound).encode(Payload(x, np.zeros(0)), Memory(), BARE, TURN)[0].body
        assert float(np.linalg.norm(y.astype(np.float64))) <= bound * (1 + 1e-12)
        np.testing.assert_allclose(y, x * min(1.0, 1 / factor), rtol=1e-6)


def test_clamp_rounds_its_edge_inwards() -> None:
    for c in (0.1, 0.3, 1e-3, 7.7):
        y = clamp(c).encode(Payload(np.array([9e9, -9e9, 0.0], np.float32), np.zeros(0)), Memory(), BARE, TURN)[0].body
        assert c * (1 - 1e-6) < float(y[0]) <= c
        assert float(y[1]) >= -c


def test_bounds_of_clip_and_clamp() -> None:
    assert clip(2.0).infer(BARE).l2 == 2.0
    assert clip(2.0).infer(BARE).linf == 2.0
    assert clip(9.0).infer(BARE.but(l2=2.0)).l2 == 2.0
    assert clip(9.0).infer(BARE.but(l2=2.0)).unbiased
    assert not clip(1.0).infer(BARE.but(l2=2.0)).unbiased
    assert clamp(0.5).infer(BARE).l2 == pytest.approx(0.5 * sqrt(DIM))
    assert clamp(0.5).infer(BARE).linf == 0.5
    assert BARE.sensitivity == inf
