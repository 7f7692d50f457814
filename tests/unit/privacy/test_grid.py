"""Noise on a grid: whole steps, enough of them, and every rounding counted."""

from __future__ import annotations

from math import exp, log2, sqrt
from statistics import NormalDist

import numpy as np
import pytest

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space, Total
from edgewise.core.stage import Merge, Post
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy import grid
from edgewise.privacy.clip import clip
from edgewise.privacy.matrix import BltMatrix, correlated_noise
from edgewise.privacy.noise import local_noise, noise

TURN = Turn(0, root(1), root(2))
UNIT = 2.0**-40  # of the plain sum


def code_of(make: object) -> str:
    with pytest.raises(CompositionError) as caught:
        make()  # type: ignore[operator]
    return caught.value.code


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("moved", [1e-30, 0.3, 1.0, 4096.0, 1e12])
@pytest.mark.parametrize("z", [1e-3, 0.5, 1.0, 7.0])
@pytest.mark.parametrize("dim", [1, 40_000, 10**8])
def test_the_noise_is_large_enough_for_what_was_rounded(moved: float, z: float, dim: int) -> None:
    on = grid.fit_noise_grid("it", z, moved, dim)
    assert log2(on.step) == round(log2(on.step))
    assert 2**23 <= on.s <= 2**24
    assert on.std >= z * (moved + on.step * sqrt(dim))
    assert on.std <= 1.01 * z * moved


def test_what_leaves_is_whole_steps() -> None:
    x = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    on = grid.fit_noise_grid("it", 1.5, 1.0, x.size)
    out = grid.noised_on_grid(x, on, root(3))
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, np.rint(out / on.step) * on.step)
    assert np.std(out - x) == pytest.approx(on.std, rel=0.04)
    assert not np.array_equal(out, grid.noised_on_grid(x, on, root(4)))


def test_too_coarse_and_too_fine_are_refused() -> None:
    assert code_of(lambda: grid.fit_noise_grid("it", 1000.0, 1.0, 10**8)) == "E-PRECISION"
    assert code_of(lambda: grid.fit_noise_grid("it", 1e-9, 1.0, 10, largest=1.0)) == "E-PRECISION"
    grid.fit_noise_grid("it", 1e-6, 1.0, 10, largest=1.0)


@pytest.mark.parametrize("s", [4, 16, 64])
def test_the_discrete_gaussian_is_as_near_to_a_rounded_one_as_the_accounting_says(s: int) -> None:
    """At S = 2^23 what is left is 2^-46 of these: the formula is tried where float64 can see it."""
    normal, total = NormalDist(0.0, s), sum(exp(-k * k / (2.0 * s * s)) for k in range(-12 * s, 12 * s + 1))
    for k in range(-4 * s, 1):  # by symmetry; the lower tail keeps its digits
        discrete = exp(-k * k / (2.0 * s * s)) / total
        rounded = normal.cdf(k + 0.5) - normal.cdf(k - 0.5)
        expected = 1.0 + (k * k / s**2 - 1.0) / (24.0 * s * s)
        assert rounded / discrete == pytest.approx(expected, abs=6.0 / s**4 + 1e-11)


def released(merge: Merge, post: Post, space: Space, updates: list[np.ndarray]) -> Pipeline:
    pipe = pipeline(space, [clip(space.dim * 1.0)], merge, [post])
    total = pipe.start_sum()
    for x in updates:
        total = pipe.add(total, pipe.encode(x, {}, 1.0, Memory(), TURN)[0], TURN)
    pipe.release(total, TURN, root(3), Memory())
    return pipe


def test_noise_comes_to_the_whole_sum() -> None:
    """A sum of 1,000 and a millionth is no float32 number: rounding it would add to what one device can do."""
    seen: list[np.ndarray] = []

    def apply(x: np.ndarray, total: Total, *rest: object) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        seen.append(x)
        return x, {}

    small, large = np.full(4, 2.0**-20, np.float32), np.full(4, 1.0, np.float32)
    released(
        plain_sum(),
        Post("watch", lambda b, a: "watches", lambda t: t, apply),
        Space(4, Quorum(2, 1001)),
        [*[large] * 1000, small],
    )
    assert seen[0].dtype == np.float64
    np.testing.assert_array_equal(seen[0], np.full(4, 1000.0 + 2.0**-20))


def moved_by_one(pipe: Pipeline, x: np.ndarray) -> float:
    """Distance by which ``x`` moves the sum before its noise."""
    held = [pipe.add(pipe.start_sum(), pipe.encode(v, {}, 1.0, Memory(), TURN)[0], TURN) for v in (x, np.zeros_like(x))]
    with_it, without = (pipe.merge.finish(total.acc, pipe.merged).body.astype(np.float64) for total in held)
    return float(np.linalg.norm(with_it - without))


@pytest.mark.parametrize("post", [noise(2.0), correlated_noise(2.0, BltMatrix((), (), 1, 1, 1))])
def test_the_unit_of_the_sum_is_counted(post: Post) -> None:
    """Every coordinate is just above half a unit and rounds to a whole one: the sum moves twice as far as it should."""
    dim = 1 << 16
    space, x = Space(dim, Quorum(2, 20)), np.full(dim, 0.500001 * UNIT, np.float32)
    length = float(np.linalg.norm(x.astype(np.float64)))
    assert code_of(lambda: pipeline(space, [clip(length)], plain_sum(), [post])) == "E-PRECISION"
    x = np.full(dim, 20.500001 * UNIT, np.float32)
    pipe = pipeline(space, [clip(float(np.linalg.norm(x.astype(np.float64))) * (1 + 1e-6))], plain_sum(), [post])
    far = moved_by_one(pipe, x)
    assert far > 1.02 * pipe.total.sensitivity
    assert pipe.total.noise_std >= 2.0 * far


def test_a_merge_that_does_not_say_how_it_rounds_gets_no_noise() -> None:
    silent = plain_sum()
    bare = Merge(
        "bare",
        False,
        lambda t: "adds",
        lambda s: Total(s, s.sensitivity, 0.0, True),
        silent.init,
        silent.add,
        silent.finish,
    )
    assert code_of(lambda: pipeline(Space(4, Quorum(2, 4)), [clip(1.0)], bare, [noise(1.0)])) == "E-PRECISION"


def test_decoding_a_hidden_sum_in_float32_is_counted() -> None:
    from edgewise.codecs.project.rotate import rotate
    from edgewise.codecs.quantize.quantize import quantize
    from edgewise.codecs.quantize.wrap import wrap

    def build(n: int) -> Pipeline:
        stages = [clip(1.0), rotate(1024), quantize(8, "shared"), wrap()]
        return pipeline(Space(4096, Quorum(2, n)), stages, ring_sum(), [noise(1.0)])

    few, many = build(4), build(20_000)
    assert few.total.noise_std / few.total.sensitivity < 1.0001
    assert 1.01 < many.total.noise_std / many.total.sensitivity < 1.1
    assert code_of(lambda: build(200_000)) == "E-PRECISION"


def test_a_clip_for_which_the_sum_has_no_room_is_refused() -> None:
    space = Space(16, Quorum(2, 100))
    assert code_of(lambda: pipeline(space, [clip(1e6)], plain_sum(), [noise(1.0)])) == "E-VALUE"
    pipe = pipeline(space, [clip(4e4)], plain_sum(), [noise(1.0)])
    total = pipe.start_sum()
    x = np.zeros(16, np.float32)
    x[3] = 4e4
    for _ in range(100):
        total = pipe.add(total, pipe.encode(x, {}, 1.0, Memory(), TURN)[0], TURN)


def test_local_noise_leaves_whole_steps() -> None:
    pipe = pipeline(Space(300, Quorum(2, 4)), [clip(1.0), local_noise(2.0)], plain_sum())
    body = pipe.encode(np.full(300, 0.01, np.float32), {}, 1.0, Memory(), TURN)[0].body.astype(np.float64)
    step = grid.fit_noise_grid("it", 2.0, 1.0, 300, 1.0).step
    np.testing.assert_array_equal(body, (np.rint(body / step) * step).astype(np.float32))
    assert pipe.encoded.noise.std == pytest.approx(2.0, rel=1e-5)
    again = pipe.encode(np.full(300, 0.01, np.float32), {}, 1.0, Memory(), Turn(0, root(1), derive(root(2), "other")))[
        0
    ].body
    assert not np.array_equal(body, again)
