"""Grids of few values: code books against their definitions, errors on normal vectors against theory, sound bounds."""

from __future__ import annotations

from itertools import pairwise
from math import erfc, exp, inf, pi, sqrt
from statistics import NormalDist

import numpy as np
import pytest

from edgewise.codecs.project.rotate import rotate, rotation_block_edges
from edgewise.codecs.quantize import scales
from edgewise.codecs.quantize.codebook import NF4, codebook_growth, pair_codebook
from edgewise.codecs.quantize.eden import CENTROIDS, eden
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.select.random_k import random_k
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum

NORMAL = np.random.default_rng(0).standard_normal(2**20).astype(np.float32)


def _turn(i: int) -> Turn:
    return Turn(i, derive(root(1), i), derive(root(2), i))


def _space(dim: int, **more: float) -> Space:
    return Space(dim, Quorum(1, 4)).but(**more)


def _through(x: Vector, *stages: Stage, i: int = 0) -> Vector:
    pipe = pipeline(_space(x.size), stages, plain_sum())
    return pipe.decode(pipe.encode(x, {}, 1.0, pipe.init(), _turn(i))[0], _turn(i)).body


def _nmse(x: Vector, *stages: Stage, rounds: int = 1) -> float:
    errors = [np.square(_through(x, *stages, i=i).astype(np.float64) - x).sum() for i in range(rounds)]
    return float(np.mean(errors) / np.square(x, dtype=np.float64).sum())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_centroids_are_the_fixed_point_of_lloyd(bits: int) -> None:
    c = CENTROIDS[bits]
    t = [0.0, *((c[1:] + c[:-1]) / 2), inf]
    density = [exp(-v * v / 2) / sqrt(2 * pi) for v in t]
    mass = [erfc(v / sqrt(2)) / 2 for v in t]
    means = [(density[i] - density[i + 1]) / (mass[i] - mass[i + 1]) for i in range(c.size)]
    np.testing.assert_allclose(c, means, rtol=1e-13)


def test_nf4_is_made_of_normal_quantiles() -> None:
    """The code book is that of the authors' create_normal_map: 8 quantiles above zero and 7 below, evenly spaced."""
    quantile, offset = NormalDist().inv_cdf, 0.9677083
    above = [quantile(p) for p in np.linspace(offset, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(offset, 0.5, 8)[:-1]]
    np.testing.assert_allclose(NF4, np.sort([*above, 0.0, *below]) / max(above), atol=2e-7)


@pytest.mark.parametrize(("bits", "theory"), [(1, pi / 2 - 1), (2, 0.1331), (3, 0.0358), (4, 0.0096)])
def test_eden_error_on_normals(bits: int, theory: float) -> None:
    assert _nmse(NORMAL, rotate(), quantize(bits, "eden")) == pytest.approx(theory, abs=0.001)


@pytest.mark.parametrize(("block", "theory"), [(65536, 1 - 2 / pi), (64, (1 - 2 / pi) * (1 - 1 / 64))])
def test_sign_error_on_normals(block: int, theory: float) -> None:
    assert _nmse(NORMAL, quantize(1, "sign", block)) == pytest.approx(theory, abs=0.001)


def test_pair_error_on_normals() -> None:
    """Lloyd's iteration finds the best two magnitudes: the error of the 2-bit Lloyd-Max quantizer."""
    assert _nmse(NORMAL, quantize(2, "pair", 65536)) == pytest.approx(0.1175, abs=0.001)


def test_nf4_error_on_normals() -> None:
    assert _nmse(NORMAL[:64_000], quantize(4, "nf4")) == pytest.approx(0.0085, abs=0.001)


@pytest.mark.slow
def test_random_k_error_on_normals() -> None:
    assert _nmse(NORMAL, random_k(0.8), rounds=4) == pytest.approx(0.25, abs=0.002)


def test_nf4_takes_the_nearest_value() -> None:
    x = NORMAL[:640]
    s = scales.scales_rounded_up(np.abs(x.reshape(-1, 64)).max(axis=1)).repeat(64).astype(np.float64)
    want = NF4[np.abs(x[:, None] / s[:, None] - NF4).argmin(axis=1)] * s
    np.testing.assert_array_equal(_through(x, quantize(4, "nf4")), want.astype(np.float32))


def test_pair_by_hand() -> None:
    x = np.array([1, -1, 1, -8, 8, 2, 0, 0.5], np.float32)
    got = _through(x, pair_codebook(6))
    low = float(scales.scales_rounded_down(np.array([5 / 4]))[0])
    assert got.tolist() == [low, -low, low, -8, 8, low, 0.0, 0.5]


@pytest.mark.parametrize("block", [2, 16, 64])
def test_nearest_growth_is_sound_and_tight(block: int) -> None:
    worst = 1.0
    for start in (*((NF4[1:] + NF4[:-1]) / 2 + 1e-6), *((NF4[1:] + NF4[:-1]) / 2 - 1e-6)):
        z = np.full(block, start)
        z[0] = 1.0
        q = NF4[np.abs(z[:, None] - NF4).argmin(axis=1)]
        worst = max(worst, float(np.linalg.norm(q) / np.linalg.norm(z)))
    assert worst <= codebook_growth(NF4, block) <= worst * scales.SLACK


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("shared", [False, True])
def test_one_bit_is_unbiased(shared: bool) -> None:
    x = np.array([1.0, 0.5, 0.07, 0.001, -0.33, -1.0, 0.0, 0.142], np.float32)
    stage, space = quantize(1, "shared" if shared else "block"), _space(8, linf=1.0, l2=2.0)
    ys = np.stack([stage.decode(_encode(stage, x, space, i), space, _turn(i)).body for i in range(4000)])
    assert set(np.unique(ys)) == {-1.0, 1.0}
    assert (np.abs(ys.mean(axis=0) - x) <= 5 * np.sqrt((1 - x**2) / 4000) + 1e-6).all()
    assert (ys[:, 0] == 1).all()
    assert (ys[:, 5] == -1).all()


def _encode(stage: Stage, x: Vector, space: Space, i: int = 0) -> Payload:
    return stage.encode(Payload(x, np.zeros(0)), Memory(), space, _turn(i))[0]


def test_one_bit_shared_adds_up() -> None:
    stage, space = quantize(1, "shared"), _space(100, linf=0.5, l2=2.0)
    bodies = [_encode(stage, NORMAL[:100] * np.float32(0.1), space, i).body for i in range(6)]
    one_by_one = sum(stage.decode(Payload(b, np.zeros(0)), space, _turn(0)).body for b in bodies)
    total = stage.decode(Payload(np.sum(bodies, axis=0, dtype=np.int32), np.zeros(0)), space, _turn(0)).body
    np.testing.assert_allclose(total, one_by_one, rtol=1e-6)
    out = stage.infer(space)
    assert (out.grid.level_max, out.grid.stride, out.grid.bits, out.l2, out.linf, out.summable) == (
        1,
        2,
        1.0,
        5.0,
        0.5,
        True,
    )


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_eden_keeps_the_part_along_the_vector(bits: int) -> None:
    """<S Q(x), x> = ||x||^2, block by block, up to the scale's rounding, which has mean zero."""
    x, space = NORMAL[:300], rotate(128).infer(_space(300))
    stage = eden(bits)
    blocks = [slice(a, b) for a, b in pairwise(rotation_block_edges(300, 128))]
    parts = []
    for i in range(400):
        y = stage.decode(_encode(stage, x, space, i), space, _turn(i)).body
        parts.append([float(x[b].astype(np.float64) @ y[b]) for b in blocks])
    want = [float(np.square(x[b], dtype=np.float64).sum()) for b in blocks]
    np.testing.assert_allclose(parts[0], want, rtol=2**-7)
    np.testing.assert_allclose(np.mean(parts, axis=0), want, rtol=5e-4)


def test_eden_shares_one_scale_with_a_joined_rest() -> None:
    space = rotate(128).infer(_space(300))  # 128, then 172 = 128 + 44 in one block
    payload = _encode(eden(2), NORMAL[:300], space)
    assert payload.scales is not None
    assert payload.scales.size == 3
    assert payload.scales[1] == payload.scales[2]


def test_eden_limits_what_no_rotation_gives() -> None:
    x = np.zeros(4096, np.float32)
    x[7] = 3.0
    for bits in (1, 2, 3, 4):
        space = rotate(4096).infer(_space(4096, l2=3.0, linf=3.0))
        y = eden(bits).decode(_encode(eden(bits), x, space), space, _turn(0)).body
        assert np.linalg.norm(y) <= 6.0
        assert np.linalg.norm(y) >= 5.9
        assert np.abs(y).max() <= eden(bits).infer(space).linf


def test_eden_is_said_to_be_unbiased_where_blocks_are_long_enough() -> None:
    assert eden(1).infer(rotate().infer(_space(64))).unbiased
    assert not eden(1).infer(rotate().infer(_space(63))).unbiased


def test_scales_round_as_they_say() -> None:
    g = np.random.default_rng(1)
    v = g.lognormal(0, 20, 3000)
    down, up = scales.scales_rounded_down(v), scales.scales_rounded_up(v.astype(np.float32))
    for s in (down, up, scales.scales_rounded_randomly(v, np.uint64(1))):
        assert not (s.view(np.uint32) & 0xFFFF).any()
    assert (down <= v).all()
    assert (down >= v / scales.SLACK).all()
    assert (up >= v.astype(np.float32)).all()
    many = scales.scales_rounded_randomly(np.full(20_000, 1.003), np.uint64(2))
    assert set(many.tolist()) == {1.0, 1.0078125}
    assert many.mean() == pytest.approx(1.003, abs=5 * 0.0038 / sqrt(20_000))
    ends = np.array([0.0, 1e-40, 3.4e38])
    assert scales.scales_rounded_randomly(ends, np.uint64(3)).tolist() == [0.0, 0.0, float(scales.LARGEST)]
    assert scales.scales_rounded_down(ends).tolist() == [0.0, 0.0, float(scales.LARGEST)]
