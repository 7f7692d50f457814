"""Quantizers: golden levels, quality, tight bounds, unbiased coordinates."""

from __future__ import annotations

import hashlib
from itertools import product

import numpy as np
import pytest

from edgewise.codecs.quantize.quantize import SLACK, quantize, quantized_block_error, quantized_growth, shared_grid_l2
from edgewise.codecs.quantize.scales import block_scales
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Kind, Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector


def _space(dim: int, **more: float) -> Space:
    return Space(dim, Quorum(1, 4)).but(**more)


def _through(stage: Stage, x: Vector, space: Space, i: int = 0) -> tuple[Payload, Vector]:
    turn = Turn(i, root(1), derive(root(2), i))
    payload, _ = stage.encode(Payload(x, np.zeros(0)), Memory(), space, turn)
    return payload, stage.decode(payload, space, turn).body


def test_golden_levels() -> None:
    """The levels are the same on every platform. They depend on no float32 summation order and no library generator."""
    x = ((np.arange(1000) * 617 % 1000) / 1000 - 0.5).astype(np.float32)
    payload, _ = _through(quantize(4), x, _space(1000))
    assert hashlib.sha256(payload.body.astype("<i4").tobytes()).hexdigest()[:16] == "d405400b56f83816"


@pytest.mark.parametrize(("bits", "nmse"), [(4, 0.0233), (8, 7.1e-5)])
def test_quality_on_gaussians(bits: int, nmse: float) -> None:
    """Published figure: an error of .023 for int4 in blocks of 64 normal values."""
    x = np.random.default_rng(0).standard_normal(64_000).astype(np.float32)
    _, y = _through(quantize(bits), x, _space(x.size))
    assert float(np.square(y - x).sum() / np.square(x).sum()) == pytest.approx(nmse, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["block", "shared"])
def test_each_coordinate_is_unbiased(grid: str) -> None:
    x = np.array([1.0, 0.5, 0.07, 0.001, -0.33, -1.0, 0.0, 0.142], np.float32)
    space = _space(8, linf=1.0, l2=2.0)
    ys = np.stack([_through(quantize(4, grid), x, space, i)[1] for i in range(4000)])
    step = 1.0 / 7
    frac = np.abs(x) / step % 1.0
    sigma = step * np.sqrt(frac * (1 - frac) / 4000)
    assert (np.abs(ys.mean(axis=0) - x) <= 5 * sigma + 1e-6).all()
    assert (ys[:, 6] == 0).all()
    assert set(np.round(ys[:, 1] / step, 4)) == {3.0, 4.0}


def test_scales_are_bfloat16_rounded_up() -> None:
    g = np.random.default_rng(0)
    x = (g.standard_normal(6400) * 10.0 ** g.uniform(-30, 30, 6400)).astype(np.float32)
    s = block_scales(x, 64)
    top = np.abs(x).reshape(-1, 64).max(axis=1)
    assert not (s.view(np.uint32) & 0xFFFF).any()
    assert (s >= top).all()
    assert (s <= top * SLACK).all()
    exact = np.full(64, 1.5, np.float32)
    assert block_scales(exact, 64).tolist() == [1.5]


def test_extremes() -> None:
    top = np.finfo(np.float32).max
    for value, out in ((0.0, 0.0), (1e-40, 0.0), (2.0**-126, 2.0**-126), (top, 3.3895314e38)):
        x = np.full(10, value, np.float32)
        payload, y = _through(quantize(8), x, _space(10))
        assert payload.scales is not None
        assert np.isfinite(payload.scales).all()
        np.testing.assert_allclose(y, np.float32(out), rtol=0.02)
    empty, y = _through(quantize(8), np.zeros(0, np.float32), _space(0))
    assert empty.body.size == y.size == 0


def test_the_last_block_may_be_short() -> None:
    x = np.linspace(-1, 1, 130, dtype=np.float32)
    payload, y = _through(quantize(8), x, _space(130))
    assert payload.scales is not None
    assert payload.scales.size == 3
    assert np.abs(y - x).max() <= 1.01 / 127


@pytest.mark.parametrize(("block", "top"), [(2, 1), (3, 3), (4, 7), (5, 2)])
def test_block_growth_is_sound_and_tight(block: int, top: int) -> None:
    """The bound holds for all vectors of a fine lattice whose largest coordinate is L (no slack), rounded up freely."""
    worst = 0.0
    for rest in product(np.linspace(0, top, 8 * top + 1), repeat=min(block - 1, 2)):
        full = np.array([top, *rest, *[rest[-1]] * (block - 1 - len(rest))])
        worst = max(worst, float(np.linalg.norm(np.minimum(np.ceil(full + 1e-9), top)) / np.linalg.norm(full)))
    assert worst <= quantized_growth(block, top)
    sup = max(np.sqrt((top**2 + (block - 1) * (n + 1) ** 2) / (top**2 + (block - 1) * n**2)) for n in range(top))
    assert quantized_growth(block, top) <= sup * SLACK


def test_shared_bound_is_sound() -> None:
    g = np.random.default_rng(2)
    for _ in range(200):
        dim = int(g.integers(1, 60))
        x = g.standard_normal(dim) * 10 ** g.uniform(-3, 1)
        l2, step, top = float(np.linalg.norm(x)), 0.1, 10_000
        up = np.ceil(np.abs(x) / step + 1e-12) * step
        assert np.linalg.norm(up) <= shared_grid_l2(l2, step, dim, top) * (1 + 1e-9)
        assert shared_grid_l2(l2, step, dim, top) <= l2 + step * np.sqrt(dim) + 1e-9
    assert shared_grid_l2(np.inf, 0.1, 4, 7) == pytest.approx(1.4)


def test_spaces() -> None:
    out = quantize(4, block=32).infer(_space(100, l2=1.0, linf=0.5))
    assert (out.grid.kind, out.grid.level_max, out.grid.bits, out.grid.block, out.grid.scale) == (
        Kind.INTEGER,
        7,
        4.0,
        32,
        0.0,
    )
    assert not out.summable
    assert out.linf == 0.5 * SLACK
    out = quantize(8, "shared").infer(_space(100, l2=1.0, linf=0.5))
    assert (out.grid.level_max, out.grid.block, out.grid.scale, out.linf) == (127, 0, 0.5 / 127, 0.5)
    assert out.summable
    assert out.unbiased


def test_rounding_depends_on_round_and_device() -> None:
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    a = _through(quantize(2), x, _space(1000), 1)[0].body
    b = _through(quantize(2), x, _space(1000), 2)[0].body
    assert (a != b).any()


@pytest.mark.parametrize("kept", [1.0, 0.1])
@pytest.mark.parametrize(("bits", "block"), [(1, 64), (2, 8), (2, 64), (2, 1024), (3, 64), (8, 64)])
def test_the_expected_error_is_the_measured_one(bits: int, block: int, kept: float) -> None:
    g = np.random.default_rng(5)
    x = g.standard_normal(400_000).astype(np.float32)
    x = x[np.abs(x) >= np.quantile(np.abs(x), 1.0 - kept)]
    _, y = _through(quantize(bits, block=block), x, _space(x.size))
    assert float(((y - x) ** 2).sum() / (x**2).sum()) == pytest.approx(
        quantized_block_error(bits, block, kept), rel=0.06
    )
