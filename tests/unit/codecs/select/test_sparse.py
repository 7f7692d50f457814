"""Stages that send a part of the vector (top_k, random_k, segments), and the lift out of a ring."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from invited import decided, invited

from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.segments import segments
from edgewise.codecs.select.top_k import top_k, top_k_positions
from edgewise.codecs.wire import pack
from edgewise.core.errors import CompositionError, DecodeError, RecipeError
from edgewise.core.frame import Contribution, load
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Grid, Kind, Quorum, Space, Support
from edgewise.core.stage import Stage
from edgewise.core.training import Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.engine.aggregation import PlainAggregation
from edgewise.engine.round_states import Closed
from edgewise.merges.plain import plain_sum
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe.recipe import from_plain

TURN = Turn(5, root(1), root(2))


def _space(dim: int) -> Space:
    return Space(dim, Quorum(1, 4), l2=3.0, linf=2.0)


def _encode(stage: Stage, x: Vector, turn: Turn = TURN) -> Payload:
    return stage.encode(Payload(x, np.zeros(0)), Memory(), _space(x.size), turn)[0]


@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-4, 4, width=16)), st.floats(0.01, 1.0))
def test_top_k_is_a_stable_sort(x: Vector, fraction: float) -> None:
    payload = _encode(top_k(fraction), x)
    k = max(1, round(fraction * x.size))
    want = sorted(np.argsort(-np.abs(x), kind="stable")[:k].tolist())
    assert payload.support is not None
    assert payload.support.tolist() == want
    assert payload.body.tolist() == x[want].tolist()
    dense = top_k(fraction).decode(payload, _space(x.size), TURN).dense(x.size)
    assert dense.support is None
    assert dense.body.tolist() == [v if i in want else 0.0 for i, v in enumerate(x.tolist())]


def test_top_k_space() -> None:
    out = top_k(0.1).infer(_space(95))
    assert (out.dim, out.universe, out.sparse, out.summable, out.unbiased) == (10, 95, True, False, False)
    assert (out.l2, out.linf) == (3.0, 2.0)
    assert top_k(0.001).infer(_space(95)).dim == 1


def test_top_k_takes_the_lowest_of_equals() -> None:
    assert _encode(top_k(0.3), np.full(10, -1.0, np.float32)).support.tolist() == [0, 1, 2]  # type: ignore[union-attr]
    x = np.array([1, 2, 1, -2, 1, 1], np.float32)
    assert _encode(top_k(0.5), x).support.tolist() == [0, 1, 3]  # type: ignore[union-attr]


def _partition(x: Vector, k: int) -> list[int]:
    """Selection over the whole vector."""
    size = np.abs(x)
    edge = np.partition(size, x.size - k)[x.size - k]
    above = np.flatnonzero(size > edge)
    return sorted([*above.tolist(), *np.flatnonzero(size == edge)[: k - above.size].tolist()])


def _large() -> dict[str, Vector]:
    g, d = np.random.default_rng(5), 300_001
    layers = np.repeat(10.0 ** g.uniform(-3, 3, 31), 10_000)[:d]
    layers = np.concatenate([layers, np.ones(d - layers.size)])
    peaks = np.zeros(d)
    peaks[1000:1400] = g.standard_normal(400)
    seen = np.zeros(d)  # The sampled coordinates alone are large.
    for i in range(256):
        seen[i * (d - 256) // 255 :][:256] = 1.0
    return {
        k: v.astype(np.float32)
        for k, v in {
            "gaussian": g.standard_normal(d),
            "heavy": g.standard_t(1.2, d),
            "layers": g.standard_normal(d) * layers,
            "zeros": np.zeros(d),
            "minus zero": np.full(d, -0.0),
            "constant": np.full(d, -0.25),
            "ties": g.integers(-3, 4, d),
            "rising": np.arange(d),
            "falling": -np.arange(d)[::-1],
            "denormal": g.integers(-50, 50, d) * 1.4e-45,
            "few": peaks,
            "sampled": seen + g.uniform(0, 0.5, d),
            "huge": g.choice([-3.4e38, 3.4e38, 1.0], d),
        }.items()
    }


LARGE = _large()


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("k", [1, 150, 3000, 90_000, 300_000, 300_001])
def test_top_k_is_that_of_a_partition(name: str, k: int) -> None:
    x = LARGE[name]
    got = top_k_positions(lambda a, b: x[a:b], x.size, k)
    assert got.dtype == np.int64
    assert got.tolist() == _partition(x, k)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-4, 4, width=16)),
    st.floats(0.01, 1.0),
    st.integers(2, 70),
)
def test_chunks_choose_for_themselves(x: Vector, fraction: float, chunk: int) -> None:
    payload = _encode(top_k(fraction, chunk), x)
    want = []
    for at in range(0, x.size, chunk):
        part = x[at : at + chunk]
        k = min(part.size, max(1, round(fraction * part.size)))
        want += [at + i for i in sorted(np.argsort(-np.abs(part), kind="stable")[:k].tolist())]
    assert payload.support is not None
    assert payload.support.tolist() == want
    space = top_k(fraction, chunk).infer(_space(x.size))
    assert space.dim == len(want)
    back = pack.unpack(pack.pack(payload.but(head=np.zeros(0)), space), space)
    assert back.support is not None
    assert back.support.tolist() == want


def test_chunks_cost_what_the_literature_says() -> None:
    """Published figure: .14 bits per parameter at 1 %, chunks of 4096, 2-bit values."""
    x = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)
    pipe = pipeline(_space(x.size), [top_k(0.01, 4096), quantize(2, "pair")], plain_sum())
    payload, _ = pipe.encode(x, {}, 1.0, Memory(), TURN)
    raw = pack.pack(payload, pipe.encoded)
    assert 8 * len(raw) / x.size <= 0.11
    assert len(raw) == pytest.approx(pack.size_bytes(pipe.encoded), rel=0.01)
    y = pipe.decode(payload, TURN).body
    assert float(np.square(y - x).sum() / np.square(x).sum()) == pytest.approx(0.915, abs=0.003)


def test_few_positions_per_chunk_travel_inside_it() -> None:
    x = np.random.default_rng(0).standard_normal(2**20 + 7).astype(np.float32)
    stage = top_k(1 / 4096, 4096)
    space = stage.infer(_space(x.size))
    raw = pack.pack(_encode(stage, x), space)
    assert (space.dim, space.support.chunk_k) == (257, 1)
    assert len(raw) == pack.size_bytes(space) == 257 * 4 + (257 * 12 + 7) // 8
    moved = bytearray(raw)
    moved[385] = 0x0F  # This puts the last position behind the end of the last, shorter chunk.
    with pytest.raises(DecodeError, match="positions"):
        pack.unpack(bytes(moved), space)


def test_a_chunk_with_more_than_its_share_is_refused() -> None:
    for fraction, where in ((0.05, range(50)), (0.5, range(500))):  # a Golomb code, a bitmap
        space = top_k(fraction, 100).infer(_space(1000))
        payload = Payload(np.zeros(space.dim, np.float32), np.zeros(0), np.array(where))
        with pytest.raises(ValueError, match="share"):
            pack.pack(payload, space)
        with pytest.raises(DecodeError, match="share"):
            pack.unpack(pack.pack(payload, space.but(support=Support(space.universe))), space)


def test_random_k_support_is_public_and_moves() -> None:
    x = np.arange(1, 101, dtype=np.float32)
    stage = random_k(0.2, unbiased=False)
    a = _encode(stage, x).body
    assert (a == _encode(stage, x, Turn(5, root(1), root(99))).body).all(), "depends on nothing private"
    assert (a != _encode(stage, x, Turn(6, root(1), root(2))).body).any(), "differs by round"
    assert (a != _encode(stage, x, Turn(5, root(3), root(2))).body).any(), "differs by public key"
    dense = stage.decode(_encode(stage, x), _space(100), TURN).dense(100).body
    assert sorted(dense[dense != 0].tolist()) == sorted(a.tolist())
    assert ((dense == 0) | (dense == x)).all()


def test_random_k_golden_support() -> None:
    """Devices of different versions must draw the same support."""
    x = np.arange(50, dtype=np.float32)
    assert _encode(random_k(0.1, unbiased=False), x).body.tolist() == [15, 24, 25, 40, 44]


def test_random_k_pays_before_it_travels() -> None:
    x = np.ones(100, np.float32)
    body = _encode(random_k(0.25), x).body
    np.testing.assert_allclose(body, 4.0, rtol=1e-6)
    assert (body <= 4.0).all()
    out = random_k(0.25).infer(_space(100))
    assert (out.dim, out.l2, out.linf, out.unbiased, out.moving, out.summable) == (25, 12.0, 8.0, True, True, True)
    biased = random_k(0.25, unbiased=False).infer(_space(100))
    assert (biased.l2, biased.linf, biased.unbiased) == (3.0, 2.0, False)
    whole = random_k(1.0).infer(_space(100))
    assert (whole.dim, whole.l2, whole.moving) == (100, 3.0, False)


def test_random_k_variance_is_the_textbook_one() -> None:
    """The NMSE is (1 - p) / p, so 19 at 5 %."""
    x = np.random.default_rng(0).standard_normal(20_000).astype(np.float32)
    stage = random_k(0.05)
    y = stage.decode(_encode(stage, x), _space(x.size), TURN).dense(x.size).body
    assert float(np.square(y - x).sum() / np.square(x).sum()) == pytest.approx(19.0, rel=0.1)


def test_random_k_with_a_limit_trades_variance_for_length() -> None:
    """At 5 % and a factor of 8 the mean is 0.4 x, and the variance is 64 0.05 0.95 = 3.04 ||x||^2."""
    x = np.ones(2000, np.float32)
    stage = random_k(0.05, most=8.0)
    y = np.array(
        [
            stage.decode(_encode(stage, x, Turn(i, root(1), root(2))), _space(x.size), Turn(i, root(1), root(2)))
            .dense(x.size)
            .body
            for i in range(200)
        ]
    )
    assert y.mean() == pytest.approx(0.4)
    assert y.var(axis=0).mean() == pytest.approx(3.04, rel=0.05)
    out = stage.infer(_space(100))
    assert (out.l2, out.gain, out.unbiased) == (24.0, 8.0, False)
    assert random_k(0.25, most=4.0).infer(_space(100)).unbiased
    with pytest.raises(RecipeError, match="at least 1"):
        random_k(0.5, most=0.5)
    with pytest.raises(RecipeError, match="unbiased = false"):
        random_k(0.5, unbiased=False, most=2.0)


def test_random_k_of_each_device_is_its_own() -> None:
    """With draws of its own on each device, a mean of n has an n-th of the variance. A blind sum refuses them."""
    x, n = np.ones(2000, np.float32), 100
    turns = [Turn(5, root(1), root(2), device=f"d{i}") for i in range(n)]
    mine = random_k(0.1, each=True)
    mean = sum(mine.decode(_encode(mine, x, turn), _space(x.size), turn).dense(x.size).body for turn in turns) / n
    assert float(np.square(mean - x).mean()) == pytest.approx(9.0 / n, rel=0.1)
    all_alike = random_k(0.1)
    a, b = (all_alike.decode(_encode(all_alike, x, turn), _space(x.size), turn).support for turn in turns[:2])
    np.testing.assert_array_equal(a, b)
    assert not mine.infer(_space(100)).summable
    assert random_k(1.0, each=True).infer(_space(100)).summable


def test_the_server_knows_whose_choice_it_decodes() -> None:
    plain = {
        "schema": 1,
        "privacy": "none",
        "stage": [{"kind": "weigh"}, {"kind": "random_k", "fraction": 0.25, "each": True}],
    }
    plan = compile_plan(from_plain(plain), Spec.of([("w", (200,), "float32")]), 2, BUILT_IN)
    pipe, taken, decoded = plan.at(0), PlainAggregation(decided(plan)), []
    for i, device in enumerate(("a", "b")):
        turn = replace(plan.turn(0), device=device)
        x = np.random.default_rng(i).standard_normal(200).astype(np.float32)
        payload, _ = pipe.encode(x, {"loss_first": 1.0, "loss_last": 1.0}, 65536.0, Memory(), turn)
        raw = pack.pack(payload, pipe.encoded)
        taken.fold(device, Contribution(run=plan.run, round=0, device=device, payload=bytes(raw)))
        decoded.append(pipe.decode(payload, turn).body)
    ((_, summed),) = taken.sums(cast(Closed, None))
    released, _ = pipe.release(summed, plan.turn(0), root(3), Memory())
    np.testing.assert_allclose(released.mean, (decoded[0] + decoded[1]) / 2, rtol=1e-5, atol=1e-6)


def test_a_device_draws_by_its_name() -> None:
    """A device's message decodes to its own coordinates under its name, and under no other."""
    plain = {"schema": 1, "privacy": "none", "stage": [{"kind": "random_k", "fraction": 0.25, "each": True}]}
    spec = Spec.of([("w", (200,), "float32")])
    plan = compile_plan(from_plain(plain), spec, 2, BUILT_IN)
    x = np.arange(1, 201, dtype=np.float32)
    state, _ = machine.step(plan, states.join(plan, "a"), invited(plan))
    _, effects = machine.step(plan, state, device_events.Trained(Update(x, {"loss_first": 1.0, "loss_last": 1.0}, 9.0)))
    (sent,) = (load(e.frame) for e in effects if isinstance(e, device_events.SendFrame))
    assert isinstance(sent, Contribution)
    payload = pack.unpack(sent.payload, plan.at(0).encoded)
    mine, others = (plan.at(0).decode(payload, replace(plan.turn(0), device=name)).body for name in ("a", "b"))
    at = mine != 0
    assert at.sum() == 50
    np.testing.assert_allclose(mine[at], 4.0 * x[at], rtol=1e-6)
    assert not np.allclose(others[others != 0], 4.0 * x[others != 0])


def test_a_choice_of_its_own_is_no_part_of_a_hidden_sum() -> None:
    plain = {
        "schema": 1,
        "privacy": "hidden",
        "merge": {"kind": "secure_sum"},
        "stage": [{"kind": "clip", "l2": 1.0}, {"kind": "random_k", "fraction": 0.25, "each": True},
                  {"kind": "rotate"}, {"kind": "clamp", "linf": 1.0},
                  {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}],
    }  # fmt: skip
    with pytest.raises(CompositionError) as caught:
        compile_plan(from_plain(plain), Spec.of([("w", (200,), "float32")]), 5, BUILT_IN)
    assert caught.value.code == "E-NOT-SUMMABLE"


SPEC = Spec.of([("l0.a", (2, 2), "float32"), ("l0.b", (3,), "float32"), ("l1.a", (1,), "float32")])


@pytest.mark.parametrize(
    ("names", "kept"),
    [(["l0.*"], range(7)), (["*.a"], [0, 1, 2, 3, 7]), (["l1.a", "l0.b"], [4, 5, 6, 7]), (["l0.[ab]", "*"], range(8))],
)
def test_segments(names: list[str], kept: list[int]) -> None:
    x = np.arange(1, 9, dtype=np.float32)
    stage = segments(SPEC, names)
    payload = _encode(stage, x)
    assert payload.body.tolist() == x[list(kept)].tolist()
    dense = stage.decode(payload, _space(8), TURN).dense(8).body
    assert dense.tolist() == [v if i in kept else 0.0 for i, v in enumerate(x.tolist())]
    out = stage.infer(_space(8))
    assert (out.dim, out.l2, out.unbiased, out.summable) == (len(kept), 3.0, len(kept) == 8, True)


@given(st.integers(2, 32), st.data())
def test_wrap_lifts_the_centred_residue(bits: int, data: st.DataObject) -> None:
    half = 2 ** (bits - 1)
    values = data.draw(st.lists(st.integers(-half, half - 1), min_size=1, max_size=20))
    space = _space(len(values)).but(grid=Grid(Kind.INTEGER))
    stage = wrap(bits)
    payload, _ = stage.encode(Payload(np.array(values, np.int32), np.zeros(0)), Memory(), space, TURN)
    assert payload.body.dtype == np.uint32
    assert payload.body.tolist() == [v % 2**bits for v in values]
    assert stage.decode(payload, space, TURN).dense(space.dim).body.tolist() == values
