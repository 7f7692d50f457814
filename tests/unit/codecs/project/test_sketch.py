"""Count sketch: the map itself, FetchSGD's step on the server, its memory, and the blind merge."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from edgewise.codecs.project.sketch import sketch, sketch_noise_factor
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.errors import TrainingError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory, flat
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Vector
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy.clip import clamp

DIM = 2000
GOLDEN = [-1, 2, -3, 2, 2, -2, 1, 1, -3, 6, -3, -4]  # column + 1, signed
SPACE = Space(DIM, Quorum(1, 8))


def _turn(round: int = 0, device: int = 0) -> Turn:
    return Turn(round, derive(root(1), round), derive(root(2), round, device))


def _sketch(stage: Stage, x: Vector, space: Space = SPACE) -> Vector:
    return stage.encode(Payload(x, np.zeros(0)), Memory(), space, _turn())[0].body


def _matrix(stage: Stage, dim: int) -> np.ndarray:
    """S, column after column."""
    space = SPACE.but(dim=dim)
    return np.stack([_sketch(stage, row, space) for row in np.eye(dim, dtype=np.float32)], axis=1)


def _normal(seed: int, dim: int = DIM) -> Vector:
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def test_every_row_holds_every_coordinate_once_with_a_sign() -> None:
    matrix = _matrix(sketch(4.0, rows=3), 600).reshape(3, 50, 600)
    assert set(np.unique(matrix).tolist()) == {-1.0, 0.0, 1.0}
    assert (np.abs(matrix).sum(axis=1) == 1).all()
    signs = matrix.sum(axis=1)
    load = np.abs(matrix).sum(axis=2)
    assert abs(signs.mean()) < 5 / np.sqrt(1800)
    assert 4 < load.std() ** 2 < 24, "columns are filled about evenly: variance near the mean of 12"
    assert np.abs(np.corrcoef(signs)[~np.eye(3, dtype=bool)]).max() < 0.2, "rows hash independently"


def test_the_map_is_linear_and_the_same_in_every_round() -> None:
    stage, x, y = sketch(5.0), _normal(1), _normal(2)
    np.testing.assert_allclose(_sketch(stage, x + y), _sketch(stage, x) + _sketch(stage, y), atol=1e-5)
    later = sketch(5.0).encode(Payload(x, np.zeros(0)), Memory(), SPACE, _turn(9, 4))[0].body
    assert later.tobytes() == _sketch(stage, x).tobytes()


def test_golden_cells() -> None:
    """A memory written by one version must fit the hashes of the next."""
    matrix = _matrix(sketch(2.0, rows=1), 12)
    cells = [(1 + int(np.flatnonzero(c)[0])) * int(c.sum()) for c in matrix.T]
    assert cells == GOLDEN


def test_decode_is_the_mean_over_rows() -> None:
    stage, x = sketch(4.0, rows=3), _normal(3, 600)
    space = SPACE.but(dim=600)
    matrix = _matrix(stage, 600).astype(np.float64)
    got = stage.decode(Payload(_sketch(stage, x, space), np.zeros(0)), space, _turn()).body
    np.testing.assert_allclose(got, matrix.T @ (matrix @ x) / 3, atol=1e-5)


def test_space() -> None:
    out = sketch(10.0).infer(SPACE.but(l2=1.0, linf=0.5))
    assert (out.dim, out.universe, out.l2, out.linf) == (200, 200, inf, inf)
    assert (out.summable, out.unbiased, out.memory, out.moving, out.sparse) == (True, False, False, False, False)
    clamped = clamp(0.5).infer(out)
    assert quantize(8, "shared").infer(clamped).grid.level_max == 127


def _plain_step(
    matrix: np.ndarray, u: np.ndarray, e: np.ndarray, m: np.ndarray, k: int, rho: float, floor: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FetchSGD with dense matrices, in float64."""
    rows, cols, dim = matrix.shape
    u = rho * u + m
    e = e + u
    estimate = np.median(np.einsum("rcd,rc->rd", matrix, e.reshape(rows, cols)), axis=0)
    order = np.argsort(-np.abs(estimate), kind="stable")[:k]
    least = floor * sketch_noise_factor(rows, dim) * np.sqrt(np.mean(e**2))
    released = np.zeros(dim)
    released[order] = np.sign(estimate[order]) * np.maximum(np.abs(estimate[order]) - least, 0.0)
    return released, u, e - (matrix @ released).reshape(-1)


@pytest.mark.parametrize(("momentum", "floor"), [(0.0, 0.0), (0.9, 0.0), (0.0, 1.0), (0.9, 0.5)])
def test_the_step_is_fetchsgd(momentum: float, floor: float) -> None:
    dim, rows = 900, 3
    stage = sketch(6.0, rows, keep=0.01, momentum=momentum, floor=floor)
    space = SPACE.but(dim=dim)
    matrix = _matrix(stage, dim).reshape(rows, -1, dim).astype(np.float64)
    assert stage.server is not None
    memory, u, e = stage.server.init(space), np.zeros(rows * 50), np.zeros(rows * 50)
    assert set(flat(memory)) == ({"error", "momentum"} if momentum else {"error"})
    for round in range(4):
        x = np.random.default_rng(round).standard_t(1.5, dim).astype(np.float32)
        mean = _sketch(stage, x, space)
        before = {k: v.copy() for k, v in flat(memory).items()}
        got, after = stage.server.absorb(mean, 3, memory, space, _turn(round), {})
        assert all((memory[k] == before[k]).all() for k in before), "memory is replaced, not changed"
        want, u, e = _plain_step(matrix, u, e, mean.astype(np.float64), 9, momentum, floor)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(after["error"], e, rtol=1e-4, atol=1e-3)
        assert np.count_nonzero(got) == np.count_nonzero(want) <= 9
        if momentum:
            np.testing.assert_allclose(after["momentum"], u, rtol=1e-4, atol=1e-3)
        memory = after


def _run(stage: Stage, xs: list[Vector]) -> tuple[list[Vector], Memory]:
    assert stage.server is not None
    memory, out = stage.server.init(SPACE), []
    for x in xs:
        released, memory = stage.server.absorb(_sketch(stage, x), 1, memory, SPACE, _turn(), {})
        out.append(released)
    return out, memory


def test_heavy_hitters_are_recovered_exactly_when_the_sketch_is_wide() -> None:
    x = np.zeros(DIM, np.float32)
    x[[3, 500, 1999]] = [5.0, -2.0, 0.25]
    (got,), memory = _run(sketch(4.0, keep=0.0015, floor=0.0), [x])
    assert got.tolist() == x.tolist()
    assert not memory["error"].any()


def test_what_is_below_the_floor_waits_and_comes_later() -> None:
    """With the floor the same heavy hitters arrive over some rounds. Nothing else is ever released."""
    x = np.zeros(DIM, np.float32)
    x[[3, 500, 1999]] = [5.0, -2.0, 0.25]
    out, memory = _run(sketch(4.0), [x] + [np.zeros(DIM, np.float32)] * 20)
    np.testing.assert_allclose(np.sum(out, axis=0), x, atol=1e-6)
    assert set(np.flatnonzero(np.any(out, axis=0)).tolist()) == {3, 500, 1999}
    assert float(np.abs(memory["error"]).max()) < 1e-6
    assert 0 < out[0][3] < 5.0


def test_noise_alone_releases_next_to_nothing() -> None:
    """Hardly one of 20,000 estimates of a dense update exceeds the floor. The memory holds the sketch of the rest."""
    dim = 20_000
    space, x = SPACE.but(dim=dim), _normal(5, dim)
    stage = sketch(10.0)
    assert stage.server is not None
    got, memory = stage.server.absorb(_sketch(stage, x, space), 1, stage.server.init(space), space, _turn(), {})
    assert np.count_nonzero(got) <= 4
    assert float(np.square(got).sum()) < 0.001 * float(np.square(x).sum())
    np.testing.assert_allclose(memory["error"], _sketch(stage, x - got, space), atol=1e-4)


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize(("floor", "converges"), [(1.0, True), (0.0, False)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_quadratic_converges_with_the_floor_and_diverges_without(
    floor: float, converges: bool, momentum: float
) -> None:
    """Without the floor the error grows: power-law target, x = lr (target - w), 60 rounds, a sketch 5 times smaller."""
    dim = 20_000
    space, g = SPACE.but(dim=dim), np.random.default_rng(0)
    target = g.permutation(np.sign(g.standard_normal(dim)) * np.arange(1, dim + 1) ** -0.8).astype(np.float32)
    stage = sketch(5.0, keep=0.02, momentum=momentum, floor=floor)
    assert stage.server is not None
    w, memory = np.zeros(dim, np.float32), stage.server.init(space)
    for _ in range(60 if converges else 25):
        x = np.float32(0.3 * (1 - momentum)) * (target - w)
        released, memory = stage.server.absorb(_sketch(stage, x, space), 1, memory, space, _turn(), {})
        w = w + released
    error = float(np.square(w - target).sum() / np.square(target).sum())
    assert (error < 0.1) if converges else (error > 10.0)


def test_nothing_to_say_keeps_everything_zero() -> None:
    (got,), memory = _run(sketch(4.0, momentum=0.5), [np.zeros(DIM, np.float32)])
    assert not got.any()
    assert not memory["error"].any()


def test_overflow_is_the_devices_error() -> None:
    with pytest.raises(TrainingError) as caught:
        _sketch(sketch(100.0), np.full(DIM, 3e38, np.float32))
    assert caught.value.code == "E-RANGE"


def _rounds(pipe: Pipeline) -> list[Vector]:
    """Play three rounds of four devices, with the server's memory carried over."""
    memory, means = pipe.start_memory(), []
    for round in range(3):
        total = pipe.start_sum()
        for device in range(4):
            x = np.random.default_rng([round, device]).standard_t(1.5, DIM).astype(np.float32) * np.float32(0.01)
            payload, _ = pipe.encode(x, {}, 1.0, Memory(), _turn(round, device))
            total = pipe.add(total, payload, _turn(round))
        aggregate, memory = pipe.release(total, _turn(round), root(3), memory)
        means.append(aggregate.mean)
    return means


def test_the_blind_way_gives_what_the_visible_way_gives() -> None:
    stages = [sketch(4.0, momentum=0.5, floor=0.3), clamp(0.5), quantize(12, "shared"), wrap(16)]
    blind, visible = (_rounds(pipeline(SPACE, stages, merge)) for merge in (ring_sum(), plain_sum()))
    for a, b in zip(blind, visible, strict=True):
        assert np.count_nonzero(a) > 3
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_estimate_does_not_depend_on_the_block() -> None:
    """With more coordinates than one block, positions continue, and k holds over all blocks."""
    dim = (1 << 18) + 1000
    space = SPACE.but(dim=dim)
    x = np.zeros(dim, np.float32)
    at = [7, (1 << 18) - 1, 1 << 18, dim - 1]
    x[at] = [1.0, -3.0, 2.0, 4.0]
    stage = sketch(50.0, keep=3 / dim, floor=0.0)
    assert stage.server is not None
    got, _ = stage.server.absorb(_sketch(stage, x, space), 1, stage.server.init(space), space, _turn(), {})
    assert np.flatnonzero(got).tolist() == at[1:]
    assert got[at[1:]].tolist() == [-3.0, 2.0, 4.0]
