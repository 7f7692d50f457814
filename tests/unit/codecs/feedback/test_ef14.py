"""Error feedback step by step, against the equations."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from edgewise.codecs.feedback import residual
from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.top_k import top_k
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory, flat
from edgewise.core.payload import Payload
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector
from edgewise.privacy.clip import clip

SPACE = Space(4, Quorum(1, 4))


def _turn(round: int) -> Turn:
    return Turn(round, root(1), root(2))


def _send(stage: Stage, x: list[float], memory: Memory, round: int) -> tuple[Vector, Memory]:
    payload, memory = stage.encode(Payload(np.array(x, np.float32), np.zeros(0)), memory, SPACE, _turn(round))
    return stage.decode(payload, SPACE, _turn(round)).dense(SPACE.dim).body, memory


def _kept(memory: Memory) -> Vector:
    return residual.WithResidual("", np.zeros(memory["residual"].size, np.float32), memory, np.float32(1.0)).whole()


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_by_hand(kind: str) -> None:
    stage = feedback([top_k(0.25)], residual=kind)
    memory = stage.init(SPACE)
    assert memory["residual"].tolist() == [0, 0, 0, 0]
    assert memory["last"].tolist() == [-1]
    sent, memory = _send(stage, [5, 3, -4, 1], memory, 0)
    assert sent.tolist() == [5, 0, 0, 0]
    assert _kept(memory).tolist() == [0, 3, -4, 1]
    sent, memory = _send(stage, [1, 2, 0, 0], memory, 1)
    assert sent.tolist() == [0, 5, 0, 0]
    assert _kept(memory).tolist() == [1, 0, -4, 1]
    assert memory["last"].tolist() == [1]


@pytest.mark.parametrize(("absent", "factor"), [(0, 1.0), (1, 0.5), (2, 0.25), (3, 0.0), (9, 0.0)])
def test_the_residual_fades_and_is_forgotten(absent: int, factor: float) -> None:
    stage = feedback([top_k(0.25)], decay=0.5, forget_after=3, residual="float32")
    _, memory = _send(stage, [5, 3, -4, 1], stage.init(SPACE), 10)
    sent, memory = _send(stage, [0, 0, 0, 0.01], memory, 11 + absent)
    residual = np.array([0, 3, -4, 1], np.float32) * np.float32(factor) + np.array([0, 0, 0, 0.01], np.float32)
    np.testing.assert_array_equal(sent + memory["residual"], residual)


def test_a_round_asked_twice_counts_as_no_absence() -> None:
    stage = feedback([top_k(0.25)], decay=0.5)
    _, memory = _send(stage, [5, 3, -4, 1], stage.init(SPACE), 3)
    sent, _ = _send(stage, [0, 0, 0, 0], memory, 3)
    assert sent.tolist() == [0, 0, -4, 0]


def test_algebra() -> None:
    bounded = SPACE.but(l2=1.0, linf=1.0)
    out = feedback([top_k(0.5)]).infer(bounded)
    assert (out.l2, out.linf, out.memory, out.unbiased, out.sparse, out.universe) == (inf, inf, True, False, True, 4)
    out = feedback([clip(2.0), random_k(0.5, unbiased=False)]).infer(bounded)
    assert (out.l2, out.memory, out.summable) == (2.0, True, True)
    assert feedback([quantize(4)]).infer(SPACE).grid.bits == 4.0


def test_it_recovers_what_compression_loses() -> None:
    """A constant update through 1-of-4: feedback delivers all of it, plain top-k never sends three quarters."""
    stage = feedback([top_k(0.25)])
    memory, total = stage.init(SPACE), np.zeros(4)
    for round in range(100):
        sent, memory = _send(stage, [1.0, 0.9, 0.8, 0.7], memory, round)
        total += sent
    np.testing.assert_allclose(total / 100, [1.0, 0.9, 0.8, 0.7], atol=0.05)


WIDE = Space(100_000, Quorum(1, 4))


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("kind", ["bfloat16", "int8", "float32"])
@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e38])
def test_a_stored_residual_is_near_and_right_on_average(kind: str, scale: float) -> None:
    g = np.random.default_rng(0)
    x = np.clip(g.standard_normal(WIDE.dim) * scale, -3.3e38, 3.3e38).astype(np.float32)
    exact = x.astype(np.float64)
    errors = []
    for i in range(30):
        memory = residual.store_residual(kind, x.size, lambda a, b: x[a:b].copy(), root(i))
        errors.append(_kept(memory).astype(np.float64) - exact)
    top = np.repeat(np.abs(exact[: x.size // 256 * 256]).reshape(-1, 256).max(1), 256)
    top = np.concatenate([top, np.full(x.size % 256, np.abs(exact[-(x.size % 256) :]).max())])
    # float32 has no number between two denormals. Below them the step is absolute.
    step = {"bfloat16": np.maximum(np.abs(exact) * 2.0**-7, 2.0**-133), "int8": top / 127 + 2.0**-149, "float32": 0.0}
    assert (np.abs(errors) <= np.asarray(step[kind]) * (1 + 1e-6)).all()
    if kind != "float32" and scale == 1.0:
        e = np.array(errors)
        assert abs(e.mean()) <= 5 * e.std() / np.sqrt(e.size)
        assert abs((e @ np.sign(exact)).mean()) <= 5 * e.std() * np.sqrt(x.size / len(e))
        assert abs(np.corrcoef(e[0], e[1])[0, 1]) < 0.05


def test_small_updates_are_not_lost_against_a_large_residual() -> None:
    """With rounding to nearest, 1 + 0.001 would stay 1 in bfloat16 for ever."""
    space = Space(4096, Quorum(1, 4))
    stage = feedback([top_k(1 / 4096)])
    memory = stage.init(space)
    x = np.full(4096, 1e-3, np.float32)
    for i in range(200):
        payload = Payload(x if i else x + np.float32(1.0), np.zeros(0))
        _, memory = stage.encode(payload, memory, space, Turn(i, root(1), root(2)))
    assert np.median(_kept(memory)) == pytest.approx(1.2, abs=0.02)


def test_stored_types() -> None:
    for kind, dtype in (("bfloat16", np.uint16), ("int8", np.int8), ("float32", np.float32)):
        memory = feedback([top_k(0.1)], residual=kind).init(WIDE)
        assert memory["residual"].dtype == dtype
        assert (memory.get("residual_scale") is not None) == (kind == "int8")
    assert feedback([top_k(0.1)]).init(WIDE)["residual"].dtype == np.uint16


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "float32"])
def test_reading_in_parts_gives_the_bits_of_the_whole(kind: str) -> None:
    """The fused path (positions picked from parts) equals the general one, over rounds."""
    g = np.random.default_rng(3)
    fused = feedback([top_k(0.01), quantize(4)], residual=kind)
    whole = feedback([replace(top_k(0.01), pick=None), quantize(4)], residual=kind)
    ours, theirs = fused.init(WIDE), whole.init(WIDE)
    for i in range(4):
        x = g.standard_normal(WIDE.dim).astype(np.float32)
        a, ours = fused.encode(Payload(x, np.zeros(0)), ours, WIDE, _turn(i))
        b, theirs = whole.encode(Payload(x, np.zeros(0)), theirs, WIDE, _turn(i))
        assert a.support is not None
        assert b.support is not None
        assert (a.body.tobytes(), a.support.tobytes()) == (b.body.tobytes(), b.support.tobytes())
        assert {k: v.tobytes() for k, v in flat(ours).items()} == {k: v.tobytes() for k, v in flat(theirs).items()}


NORMAL = Space(1 << 13, Quorum(1, 1), population=1)


def _remembered(inner: list[Stage], form: str = "ef14") -> float:
    """Root mean square of the residual after 41 rounds of normal updates, folded without the refusal."""
    last = inner[-1]
    allowed = [*inner[:-1], replace(last, infer=lambda space: last.infer(space).but(quantized=0.0))]
    stage = feedback(allowed, residual="float32", form=form)
    memory, g = stage.init(NORMAL), np.random.default_rng(1)
    for round in range(41):
        x = g.standard_normal(NORMAL.dim).astype(np.float32)
        _, memory = stage.encode(Payload(x, np.zeros(0)), memory, NORMAL, _turn(round))
    left = memory["residual"] if form == "ef14" else x - memory["residual"]
    return float(np.sqrt(np.square(left, dtype=np.float64).mean()))


@pytest.mark.parametrize("form", ["ef14", "ef21"])
def test_why_one_and_two_bits_are_refused(form: str) -> None:
    """One bit diverges. Two bits settle above one update. The accepted quantizers remember less than one update."""
    assert _remembered([quantize(1)], form) > 1e6
    assert _remembered([quantize(2)], form) > 2.0
    assert _remembered([quantize(3)], form) < 0.7
    for bits in (1, 2):
        with pytest.raises(CompositionError, match=r"E-COMBO.*remembered grows"):
            feedback([quantize(bits)], form=form).infer(NORMAL)
    feedback([quantize(3)], form=form).infer(NORMAL)


def test_two_bits_hold_after_top_k() -> None:
    """Values that are all large suit a coarse grid. The memory stays near that of top_k alone. One bit diverges."""
    assert _remembered([top_k(0.05), quantize(2)]) < 1.5 * _remembered([top_k(0.05)])
    assert _remembered([top_k(0.05), quantize(1)]) > 1e6
    feedback([top_k(0.05), quantize(2)]).infer(NORMAL)
    with pytest.raises(CompositionError, match="E-COMBO"):
        feedback([top_k(0.05), quantize(1)]).infer(NORMAL)
