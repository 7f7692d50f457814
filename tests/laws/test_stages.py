"""Laws of all stages, alone and in useful chains: each keeps the promises of its ``infer``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import pytest

from edgewise.codecs.feedback import residual
from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.ladder import ladder, rung_bytes
from edgewise.codecs.project.low_rank import low_rank
from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.project.sketch import sketch
from edgewise.codecs.quantize.mixed import MixedWidths, mixed
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.segments import segments
from edgewise.codecs.select.shared_top_k import shared_top_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.codecs.wire import pack
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import flat
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Kind, Quorum, Space
from edgewise.core.stage import WEIGHT, Stage
from edgewise.core.vector import Spec, Vector
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.plan.catalogue import BUILT_IN
from edgewise.privacy.clip import clamp, clip

SPEC = Spec.of([("layers.0.a", (10, 30), "float32"), ("layers.0.b", (300,), "float32"), ("head", (403,), "float32")])
DIM = SPEC.dim
START = Space(DIM, Quorum(2, 6), head=("loss",), head_l2=20.0, population=6)
LOSS = {"loss": 2.5}
COUNT, CAP = 30.0, 100.0
DENORMAL = 1e-43  # one float32 denormal per coordinate: rounding there is absolute


@dataclass(frozen=True)
class Chain:
    name: str
    stages: list[Stage]
    budget_bytes: float = inf

    def at(self, space: Space = START, blind: bool = False) -> Pipeline:
        return pipeline(space, self.stages, ring_sum() if blind else plain_sum())

    def turn(self, round: int = 0, device: int = 0) -> Turn:
        private = derive(root(2), "private", round, device)
        return Turn(round, derive(root(1), "public", round), private, budget_bytes=self.budget_bytes)


def _chain(*stages: Stage, budget_bytes: float = inf) -> Chain:
    name = " > ".join(s.name for s in stages) or "identity"
    return Chain(name if budget_bytes == inf else f"{name} in {budget_bytes:g} bytes", list(stages), budget_bytes)


RUNGS = [[quantize(8)], [mixed(SPEC, 3.25)], [top_k(0.1), quantize(8)], [top_k(0.02), quantize(4)]]


CHAINS = [
    _chain(),
    _chain(clip(1.0)),
    _chain(clamp(0.05)),
    _chain(weigh(CAP)),
    _chain(segments(SPEC, ["layers.*"])),
    _chain(segments(SPEC, ["*"])),
    _chain(random_k(0.1)),
    _chain(random_k(0.1, unbiased=False)),
    _chain(random_k(1.0)),
    _chain(random_k(0.05, most=4.0)),
    _chain(random_k(0.3, each=True), rotate(128), quantize(4, "eden")),
    _chain(clip(1.0), weigh(CAP), random_k(0.05, most=4.0), clip(1.0), rotate(128), quantize(8, "shared"), wrap()),
    _chain(top_k(0.02)),
    _chain(top_k(0.5)),
    _chain(top_k(1.0)),
    _chain(top_k(0.05, chunk=64)),
    _chain(top_k(0.001, chunk=100), quantize(2, "pair", block=8)),
    _chain(top_k(0.5, chunk=64)),
    _chain(top_k(1.0, chunk=2000)),
    _chain(weigh(CAP), feedback([top_k(0.02, chunk=256), quantize(2, "pair")])),
    _chain(quantize(2)),
    _chain(quantize(4)),
    _chain(quantize(8, block=100)),
    _chain(clip(1.0), quantize(4, "shared")),
    _chain(clip(1.0), clamp(0.1), quantize(8, "shared")),
    _chain(clip(1.0), weigh(CAP), quantize(8, "shared"), wrap(11)),
    _chain(clip(1.0), weigh(CAP), random_k(0.3), clamp(0.2), quantize(6, "shared"), wrap(16)),
    _chain(rotate()),
    _chain(rotate(256)),
    _chain(clip(1.0), weigh(CAP), rotate(64), clamp(0.2), quantize(8, "shared"), wrap(16)),
    _chain(random_k(0.5), rotate(128), quantize(4)),
    _chain(rotate(256), random_k(0.2)),
    _chain(weigh(CAP), feedback([rotate(256), top_k(0.05), quantize(4)])),
    _chain(segments(SPEC, ["layers.0.b", "head"]), random_k(0.2)),
    _chain(segments(SPEC, ["*"], cycle=2, phase=0), quantize(4)),
    _chain(segments(SPEC, ["*"], cycle=2, phase=1), weigh(CAP), feedback([top_k(0.1), quantize(4)], decay=1.0)),
    _chain(segments(SPEC, ["layers.*"], cycle=2, phase=1), clip(1.0), weigh(CAP), quantize(8, "shared"), wrap(11)),
    _chain(random_k(0.2), quantize(4)),
    _chain(shared_top_k(SPEC, 0.1)),
    _chain(shared_top_k(SPEC, 1.0)),
    _chain(clip(1.0), weigh(CAP), shared_top_k(SPEC, 0.2, explore=0.5), quantize(8, "shared"), wrap(12)),
    _chain(weigh(CAP), feedback([shared_top_k(SPEC, 0.05), quantize(4)])),
    _chain(sketch(4.0)),
    _chain(segments(SPEC, ["layers.*"]), weigh(CAP), sketch(3.0, rows=3, momentum=0.9), quantize(6)),
    _chain(clip(1.0), weigh(CAP), sketch(5.0, floor=0.5), clip(0.5), clamp(0.1), quantize(12, "shared"), wrap(16)),
    _chain(random_k(0.5), top_k(0.1), quantize(3)),
    _chain(weigh(CAP), top_k(0.05), quantize(4)),
    _chain(quantize(1)),
    _chain(clip(1.0), clamp(0.1), quantize(1, "shared")),
    _chain(clip(1.0), weigh(CAP), quantize(1, "shared"), wrap(11)),
    _chain(quantize(1, "sign")),
    _chain(quantize(4, "nf4")),
    _chain(quantize(2, "pair", block=100)),
    _chain(top_k(0.1), quantize(2, "pair", block=16)),
    _chain(rotate(), quantize(1, "eden")),
    _chain(rotate(256), quantize(2, "eden")),
    _chain(weigh(CAP), rotate(64), quantize(3, "eden")),
    _chain(clip(1.0), random_k(0.5), rotate(128), quantize(4, "eden")),
    _chain(weigh(CAP), feedback([rotate(256), quantize(1, "sign", block=256)])),
    _chain(weigh(CAP), feedback([top_k(0.1), quantize(2, "pair", block=16)])),
    _chain(low_rank(SPEC, 2)),
    _chain(clip(1.0), low_rank(SPEC, 3, "svd"), quantize(8)),
    _chain(weigh(CAP), feedback([low_rank(SPEC, 2), quantize(8)])),
    _chain(feedback([top_k(0.02)])),
    _chain(weigh(CAP), feedback([top_k(0.05), quantize(4)])),
    _chain(segments(SPEC, ["head"]), weigh(CAP), feedback([top_k(0.05), quantize(2)], decay=0.9)),
    _chain(weigh(CAP), feedback([top_k(0.05), quantize(4)], residual="int8")),
    _chain(weigh(CAP), feedback([top_k(0.05), quantize(4)], residual="float32")),
    _chain(feedback([quantize(3)], residual="float32")),
    _chain(clip(1.0), feedback([top_k(0.05), quantize(4)], form="ef21")),
    _chain(feedback([random_k(0.2, unbiased=False)], form="ef21_sgdm", eta=0.3)),
    _chain(clip(1.0), weigh(CAP), feedback([random_k(0.2, unbiased=False), quantize(4)])),
    _chain(weigh(CAP), feedback([clip(1.0), random_k(0.3, unbiased=False), quantize(8, "shared"), wrap(12)])),
    _chain(mixed(SPEC, 0.1)),
    _chain(mixed(SPEC, 1.0)),
    _chain(mixed(SPEC, 3.25)),
    _chain(mixed(SPEC, 8.5)),
    _chain(weigh(CAP), feedback([mixed(SPEC, 2.0)])),
    _chain(ladder([[], [quantize(4)]])),
    _chain(ladder([[quantize(8)], [quantize(4)]]), budget_bytes=900),
    _chain(ladder([[top_k(0.3)], [top_k(0.1)]]), budget_bytes=800),
    _chain(weigh(CAP), feedback([ladder([[], *RUNGS])])),
    *[_chain(weigh(CAP), feedback([ladder(RUNGS)]), budget_bytes=b) for b in (inf, 600, 300, 60, 0)],
    _chain(segments(SPEC, ["head"]), weigh(CAP), feedback([ladder([[quantize(4)], [top_k(0.1)]])]), budget_bytes=230),
]
every = pytest.mark.parametrize("chain", CHAINS, ids=lambda c: c.name)
summable = [c for c in CHAINS if c.at().encoded.summable]
fed_back = [c for c in CHAINS if any(s.name.startswith("feedback(") for s in c.stages)]


def _vectors() -> dict[str, Vector]:
    g = np.random.default_rng(7)
    just_above = np.full(DIM, 1.0001 / 7)
    just_above[::64] = 1.0
    vectors = {
        "zeros": np.zeros(DIM),
        "one-hot": np.eye(1, DIM, 17)[0],
        "huge": np.sign(g.standard_normal(DIM)) * 1e36,
        "tiny": g.standard_normal(DIM) * 1e-30,
        "denormal": np.full(DIM, 1e-42),
        "constant": np.full(DIM, -0.01),
        "alternating": np.where(np.arange(DIM) % 2, 0.03, -0.03),
        "gaussian": g.standard_normal(DIM) * 0.01,
        "heavy": g.standard_t(1.5, DIM) * 0.01,
        "just above a level": just_above,
        "one giant": np.where(np.arange(DIM) == 3, 1e6, 1e-6),
    }
    return {k: v.astype(np.float32) for k, v in vectors.items()}


VECTORS = _vectors()


def adversarial(test: Callable[[Chain, Vector], None]) -> Callable[[Chain], None]:
    """Run a test with every vector, one after the other. As separate cases, most of the time would be pytest's own."""

    def every_vector(chain: Chain) -> None:
        for name, x in VECTORS.items():
            try:
                test(chain, x)
            except Exception as e:
                e.add_note(f"with the vector {name!r}")
                raise

    every_vector.__name__, every_vector.__doc__ = test.__name__, test.__doc__
    return every_vector


def _norm(x: Vector) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


def _decoded(pipe: Pipeline, x: Vector, turn: Turn, level: int = 0) -> Payload:
    payload, _ = pipe.encode(x, LOSS, COUNT, pipe.init(), turn)
    return pipe.decode(payload, turn, level)


@pytest.mark.quick(sample=30)
@every
def test_infer_is_total_and_pure(chain: Chain) -> None:
    first, again = chain.at(), chain.at()
    assert first.spaces == again.spaces
    assert first.totals == again.totals
    for space in first.spaces:
        assert 1 <= space.dim <= space.universe
        assert space.sparse or space.universe == space.dim
        assert (space.grid.modulus > 0) == (space.grid.kind is Kind.RING)
        assert (space.grid.block > 0) == (space.grid.scale == 0.0)


@pytest.mark.quick(sample=12)
@every
@adversarial
def test_bounds_hold(chain: Chain, x: Vector) -> None:
    """The bounds hold where contributions are merged, also from the tightest start: the vector's own norms."""
    own = START.but(l2=_norm(x) * (1 + 1e-12), linf=float(np.abs(x).max()))
    for start in (START, own):
        if start.linf == 0.0 and any("quantize" in s.name for s in chain.stages):
            continue  # a grid of step zero; a real recipe clamps to something
        pipe = chain.at(start)
        for round in range(3):
            out = _decoded(pipe, x, chain.turn(round), pipe.level)
            assert out.body.dtype == np.float32
            assert out.body.shape == (pipe.merged.dim,)
            assert np.isfinite(out.body).all()
            assert _norm(out.body) <= pipe.encoded.l2 * (1 + 1e-6) + DENORMAL
            assert float(np.abs(out.body).max()) <= pipe.encoded.peak * (1 + 1e-6) + DENORMAL
            assert np.linalg.norm(out.head) <= pipe.encoded.head_l2


@pytest.mark.quick(sample=15)
@every
@adversarial
def test_encode_is_pure_and_deterministic(chain: Chain, x: Vector) -> None:
    pipe = chain.at()
    memory = pipe.init()
    before = x.copy(), {k: v.copy() for k, v in flat(memory).items()}
    one, memory_one = pipe.encode(x, LOSS, COUNT, memory, chain.turn(4))
    two, memory_two = pipe.encode(x, LOSS, COUNT, memory, chain.turn(4))
    assert x.tobytes() == before[0].tobytes()
    assert {k: v.tobytes() for k, v in flat(memory).items()} == {k: v.tobytes() for k, v in before[1].items()}
    assert pack.pack(one, pipe.encoded) == pack.pack(two, pipe.encoded)
    assert {k: v.tobytes() for k, v in flat(memory_one).items()} == {
        k: v.tobytes() for k, v in flat(memory_two).items()
    }
    assert one.count == COUNT
    assert pipe.decode(one, chain.turn(4)).count == COUNT
    assert pack.pack(one, pipe.encoded) == pack.pack(two, pipe.encoded), "decode changed its input"


@pytest.mark.quick(sample=30)
@every
def test_memory_keeps_the_shape_that_init_says(chain: Chain) -> None:
    pipe = chain.at()
    memory = pipe.init()
    assert pipe.encoded.memory == bool(memory)
    _, after = pipe.encode(VECTORS["gaussian"], LOSS, COUNT, memory, chain.turn())
    shapes = [{k: (v.shape, v.dtype) for k, v in flat(m).items()} for m in (after, memory)]
    assert shapes[0] == shapes[1]


@pytest.mark.quick(sample=15)
@every
@adversarial
def test_pack_round_trip(chain: Chain, x: Vector) -> None:
    pipe = chain.at()
    payload, _ = pipe.encode(x, LOSS, COUNT, pipe.init(), chain.turn(1))
    raw = pack.pack(payload, pipe.encoded)
    back = pack.unpack(raw, pipe.encoded)
    assert payload.rung == back.rung
    for part in ("body", "head", "support", "scales", "widths"):
        a, b = getattr(payload, part), getattr(back, part)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())
    space, announced = pipe.encoded, pack.size_bytes(pipe.encoded)
    if space.rungs:
        space, announced = space.rungs[back.rung], rung_bytes(space)[back.rung]
    if isinstance(space.layout, MixedWidths):
        assert len(raw) <= announced
    else:
        exact = not space.sparse or space.dim * 3 > space.universe
        assert len(raw) == announced or not exact


@pytest.mark.quick(sample=15)
@pytest.mark.parametrize("chain", summable, ids=lambda c: c.name)
def test_both_orders_agree(chain: Chain) -> None:
    """Decoding each and then summing equals summing the encodings and decoding once."""
    pipe = chain.at()
    xs = [VECTORS[n] for n in ("gaussian", "heavy", "alternating", "zeros", "one-hot", "constant")]
    payloads = [pipe.encode(x, LOSS, COUNT + i, pipe.init(), chain.turn(2, i))[0] for i, x in enumerate(xs)]
    visible = np.sum([pipe.decode(p, chain.turn(2)).body.astype(np.float64) for p in payloads], axis=0)
    bodies = np.stack([p.body for p in payloads])
    if pipe.encoded.grid.kind is Kind.RING:
        added = (bodies.sum(axis=0, dtype=np.uint64) % np.uint64(pipe.encoded.grid.modulus)).astype(np.uint32)
    else:
        added = bodies.sum(axis=0, dtype=np.float32 if pipe.encoded.grid.kind is Kind.REAL else np.int32)
    blind = pipe.decode(payloads[0].but(body=added), chain.turn(2)).body
    np.testing.assert_allclose(blind, visible, rtol=1e-5, atol=1e-6 * max(1.0, float(np.abs(visible).max())))


@pytest.mark.parametrize("chain", [c for c in summable if c.at().encoded.grid.kind is Kind.RING], ids=lambda c: c.name)
def test_blind_and_visible_release_agree(chain: Chain) -> None:
    means = []
    for blind in (True, False):
        pipe = chain.at(blind=blind)
        total = pipe.start_sum()
        for i, x in enumerate(list(VECTORS.values())[:6]):
            payload, _ = pipe.encode(x, LOSS, COUNT + i, pipe.init(), chain.turn(3, i))
            total = pipe.add(total, payload, chain.turn(3))
        means.append(pipe.release(total, chain.turn(3), root(5), pipe.start_memory())[0])
    # A blind sum rounds each head scalar to 2^-32.
    assert means[0].head == pytest.approx(means[1].head, rel=1e-8)
    assert means[0].weight == pytest.approx(means[1].weight, rel=1e-8)
    one, two = means[0].mean, means[1].mean
    if any(stage.server is not None for stage in chain.stages):
        # A server that releases the largest may choose another of two equal ones, as sums differ in their last bits.
        apart = ~np.isclose(one, two, rtol=1e-5, atol=1e-6)
        least = min(np.abs(x[x != 0]).min() for x in (one, two))
        np.testing.assert_allclose(np.maximum(np.abs(one), np.abs(two))[apart], least, rtol=1e-5)
        np.testing.assert_array_equal((one != 0)[apart], (two == 0)[apart])
        one, two = np.sort(np.abs(one)), np.sort(np.abs(two))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.quick(sample=10)
@every
def test_unbiased_means_unbiased(chain: Chain) -> None:
    """Projections of decode(encode(x)) - w x on fixed directions have mean zero within five standard errors."""
    x = VECTORS["gaussian"] + np.float32(0.003)
    pipe = chain.at(START.but(l2=_norm(x), linf=float(np.abs(x).max())))
    if not pipe.encoded.unbiased:
        return
    g = np.random.default_rng(3)
    directions = np.concatenate([np.sign(g.standard_normal((DIM, 12))), x[:, None] / np.abs(x).max()], axis=1)
    errors = []
    for i in range(150):
        out = _decoded(pipe, x, chain.turn(i, i))
        w = out.head[pipe.encoded.head.index(WEIGHT)] if WEIGHT in pipe.encoded.head else 1.0
        errors.append((out.body - w * x) @ directions)
    e = np.stack(errors)
    standard_error = e.std(axis=0, ddof=1) / np.sqrt(len(e))
    assert (np.abs(e.mean(axis=0)) <= 5 * standard_error + 1e-6 * np.abs(x).sum()).all()


def test_laws_have_subjects() -> None:
    """The laws must not be vacuous."""
    bounded = START.but(l2=1.0, linf=0.1)
    assert sum(c.at(bounded).encoded.unbiased for c in CHAINS) >= 10
    assert sum(isfinite(c.at().total.sensitivity) for c in CHAINS) >= 6


@pytest.mark.parametrize("chain", fed_back, ids=lambda c: c.name)
def test_feedback_telescopes(chain: Chain) -> None:
    """With decay 1 and no absence, the sum of decoded messages plus the residual equals the sum of the updates.

    This holds as exactly as the residual is stored. Each round bfloat16 may lose 2^-7 of a coordinate, int8 1/127 of
    its block's largest, and float32 only its own rounding.
    """
    pipe = chain.at()
    at = next(i for i, s in enumerate(chain.stages) if s.name.startswith("feedback("))
    memory = pipe.init()
    step = {np.uint16: 2.0**-7, np.int8: 1 / 127, np.float32: 0.0}[memory.child("stage", at)["residual"].dtype.type]
    sent, given_, lost = np.zeros(DIM), np.zeros(DIM), 0.0
    before = pipeline(START, chain.stages[:at], plain_sum())
    g = np.random.default_rng(11)
    for round in range(6):
        x = (g.standard_normal(DIM) * 0.02).astype(np.float32)
        turn = chain.turn(round)
        payload, memory = pipe.encode(x, LOSS, COUNT, memory, turn)
        sent += pipe.decode(payload, turn).body
        given_ += before.decode(before.encode(x, LOSS, COUNT, before.init(), turn)[0], turn).body
        own = memory.child("stage", at)
        kept = residual.WithResidual("", np.zeros(pipe.spaces[at].dim, np.float32), own, np.float32(1.0)).whole()
        lost += step * float(np.abs(kept).max())
    left = before.decode(Payload(kept, np.zeros(0)), chain.turn()).body
    np.testing.assert_allclose(sent + left, given_, atol=1e-6 + lost)
    assert memory.child("stage", at)["last"].tolist() == [5]


@pytest.mark.quick(sample=30)
@every
def test_every_stage_says_what_it_does(chain: Chain) -> None:
    """Stages inside others say it too. The outer stage names the space before its first inner one."""
    pipe = chain.at()
    waiting = list(zip(pipe.stages, pipe.spaces, strict=False))
    while waiting:
        stage, before = waiting.pop()
        after = stage.infer(before)
        assert stage.says(before, after)
        inside = stage.opens(before)
        for inner in stage.inner:
            waiting.append((inner, inside))
            inside = inner.infer(inside)
        assert not stage.inner or inside.dim == after.dim


def test_every_stage_of_the_catalogue_is_under_these_laws() -> None:
    tested = {word for c in CHAINS for s in c.at().stages for word in re.findall(r"[a-z_]+(?=\()", s.name)}
    # These need segments that this layout does not have: test_ffa.py, test_products.py, tests/e2e/test_split_runs.py
    tested |= {"factors", "folds", "products", "cut_parts"}
    assert set(BUILT_IN.stages) <= tested, "add a chain with the new stage to CHAINS"
