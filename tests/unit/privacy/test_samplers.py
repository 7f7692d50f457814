"""The exact sampler, the rounding, and the sizes of distributed noise."""

from __future__ import annotations

from math import exp, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.quantize.quantize import quantize
from edgewise.codecs.quantize.wrap import wrap
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.top_k import top_k
from edgewise.codecs.weigh import weigh
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Kind, Quorum, Space
from edgewise.core.stage import Stage
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy import distributed, samplers
from edgewise.privacy.clip import clip
from edgewise.privacy.distributed import discrete_gaussian_noise, noise_wrap_deviations, rounded_norm, size_noise
from edgewise.privacy.noise import local_noise
from edgewise.privacy.samplers import discrete_gaussian, round_within_norm

KEY = root(9)


@pytest.mark.parametrize("s", [1, 2, 5, 51])
def test_samples_have_the_exact_distribution(s: int) -> None:
    """Chi-square against the probability mass, cells of at least 20 expected samples."""
    n = 200_000
    x = discrete_gaussian(s, n, derive(KEY, s))
    values = np.arange(-40 * s, 40 * s + 1)
    mass = np.exp(-(values.astype(np.float64) ** 2) / (2 * s * s))
    expected = n * mass / mass.sum()
    observed = np.bincount(x + 40 * s, minlength=values.size)
    big = expected >= 20
    chi = float(((observed[big] - expected[big]) ** 2 / expected[big]).sum())
    degrees = int(big.sum()) - 1
    assert chi < degrees + 4 * sqrt(2 * degrees) + 8
    assert abs(float(x.mean())) < 5 * s / sqrt(n)


def test_large_scales_have_the_right_moments() -> None:
    x = discrete_gaussian(23171, 100_000, KEY).astype(np.float64)
    assert x.std() == pytest.approx(23171, rel=0.01)
    assert abs(x.mean()) < 5 * 23171 / sqrt(x.size)
    assert float((x**4).mean() / (x**2).mean() ** 2) == pytest.approx(3.0, rel=0.05)


def test_samples_depend_on_the_key_only() -> None:
    np.testing.assert_array_equal(discrete_gaussian(7, 999, KEY), discrete_gaussian(7, 999, KEY))
    assert (discrete_gaussian(7, 999, KEY) != discrete_gaussian(7, 999, derive(KEY, 1))).any()
    for bad in (0, (1 << 24) + 1):
        with pytest.raises(ValueError):
            discrete_gaussian(bad, 1, KEY)


def test_samples_do_not_depend_on_how_many_are_drawn_or_in_what_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of the stream is skipped or used twice: 20,000 samples take some 300,000 words, ten portions."""
    many = discrete_gaussian(300, 20_000, KEY)
    for n in (0, 1, 17, 3000):
        np.testing.assert_array_equal(discrete_gaussian(300, n, KEY), many[:n])
    for portion in (5000, 1 << 17):
        monkeypatch.setattr(samplers, "_BUFFER", portion)
        np.testing.assert_array_equal(discrete_gaussian(300, 20_000, KEY), many)


@given(st.integers(0, 10_000), st.integers(1, 400), st.floats(0.1, 300.0))
def test_rounding_stays_within_its_bound(seed: int, dim: int, length: float) -> None:
    y = np.random.default_rng(seed).normal(size=dim)
    y *= length / np.linalg.norm(y)
    limit = rounded_norm(length, dim)
    q = round_within_norm(y, limit, derive(KEY, seed))
    assert float(np.dot(q, q)) <= limit * limit
    assert (np.abs(q - y) < 1.0).all()


def test_rounding_is_nearly_unbiased() -> None:
    y = np.linspace(-3.0, 3.0, 61)
    limit = rounded_norm(float(np.linalg.norm(y)), y.size)
    mean = np.mean([round_within_norm(y, limit, derive(KEY, i)) for i in range(4000)], axis=0)
    assert np.abs(mean - y).max() < 0.05  # given the bound the rounding leans towards zero a little
    with pytest.raises(ValueError, match="longer"):
        round_within_norm(y, 1.0, KEY)


# research anchors: n, honest, z, C, d, b -> scale, S, D2 / L, rho, with k = 4 and the paper's blocks of d
ANCHORS = [
    ((100, 70, 4.0, 1.0, 2**20, 18), (6852.489, 3277, 1.002866, 0.031412)),
    ((32, 23, 4.0, 1.0, 2**22, 20), (27780.271, 23171, 1.000698, 0.031292)),
    ((1000, 850, 8.0, 0.5, 2**22, 20), (30162.886, 4139, 1.002338, 0.007846)),
]


@pytest.mark.parametrize(("given_", "expected"), ANCHORS)
def test_sizes_are_the_papers(given_: tuple[float, ...], expected: tuple[float, ...]) -> None:
    s = size_noise(*given_, k=4.0)  # type: ignore[arg-type]
    assert s.scale == pytest.approx(expected[0], abs=6e-4)
    assert s.s == expected[1]
    assert s.inflation == pytest.approx(expected[2], abs=6e-7)
    assert s.rho == pytest.approx(expected[3], abs=6e-7)
    assert s.xi < 1e-9


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize(
    ("dim", "bits"),
    [
        (2**20, (15, 16, 19)),
        (2**22, (16, 16, 19)),
        (2**24, (17, 17, 19)),
        (2**27, (19, 19, 19)),
        (2**30, (20, 20, 20)),
        (2**33, (22, 22, 22)),
    ],  # fmt: skip,
)
def test_smallest_rings(dim: int, bits: tuple[int, ...]) -> None:
    for n, wanted in zip((100, 1000, 10_000), bits, strict=True):
        rings = [b for b in range(8, 33) if 2.0 ** (2 * b) > n * 16]
        fits = [b for b in rings if size_noise(n, n, 1.0, 1.0, dim, b, 4.0).inflation <= 1.01]
        assert fits[0] == wanted


@pytest.mark.parametrize("honest", [2, 3, 6])
def test_a_sum_of_discrete_gaussians_is_as_near_to_one_as_tau_says(honest: int) -> None:
    """Exactly, for the smallest S, where it matters: largest |log(P[sum = x] / P[N_Z(0, h S^2) = x])|."""
    x = np.arange(-60, 61).astype(np.float64)
    one = np.exp(-x * x / 2)
    one /= one.sum()
    total = one
    for _ in range(honest - 1):
        total = np.convolve(total, one)
    y = np.arange(total.size) - total.size // 2
    near = np.abs(y) <= 30  # farther out float64 ends
    target = np.exp(-(y.astype(np.float64) ** 2) / (2 * honest))
    off = np.abs(np.log(total[near] * target.sum() / target[near])).max()
    assert off <= distributed.discrete_gaussian_gap(1, honest)
    assert honest > 2 or off > 0.1 * distributed.discrete_gaussian_gap(1, honest)  # with more it is ever looser


def test_half_a_ring_holds_enough_deviations() -> None:
    for dim, k in ((2**20, 5.74), (2**24, 6.19), (2**30, 6.82)):
        assert noise_wrap_deviations(dim) == pytest.approx(k, abs=0.005)
    assert exp(-0.5) == distributed.BETA
    assert [Quorum(80, 100, corrupt).honest for corrupt in (0, 10, 80, 90)] == [80, 70, 0, 0]


ENDING = [clip(1.0), rotate(64), discrete_gaussian_noise(1.0)]
SPACE = Space(3000, Quorum(8, 10, 1), population=10)


def chain(*before: Stage, z: float = 1.0, space: Space = SPACE, bits: int | None = None) -> object:
    stages = [*before, discrete_gaussian_noise(z, bits), wrap()]
    return pipeline(space, stages, ring_sum())


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("E-NOISE-NOCLIP", lambda: chain(rotate(64))),
        ("E-ORDER", lambda: chain(clip(1.0))),
        ("E-ORDER", lambda: chain(clip(1.0), rotate(64), random_k(0.5))),
        ("E-TOPK-SECAGG", lambda: chain(clip(1.0), top_k(0.1))),
        ("E-WEIGHT", lambda: chain(clip(1.0), weigh(10.0), rotate(64))),
        ("E-STATS", lambda: chain(clip(1.0), rotate(64), space=SPACE.but(head=("loss",), head_l2=1.0))),
        ("E-NOT-REAL", lambda: chain(clip(1.0), quantize(8, "shared"))),
        ("E-NMIN", lambda: chain(clip(1.0), rotate(64), space=SPACE.but(quorum=Quorum(2, 20, 2)))),
        ("E-WRAP", lambda: chain(clip(1.0), rotate(64), bits=9)),
        ("E-VALUE", lambda: chain(clip(1.0), rotate(64), bits=32)),
        ("E-ORDER", lambda: pipeline(SPACE, [feedback(ENDING), wrap()], ring_sum())),
        ("E-ORDER", lambda: pipeline(SPACE, [feedback([*ENDING, wrap()])], ring_sum())),
        ("E-ORDER", lambda: pipeline(SPACE, [feedback([clip(1.0), local_noise(1.0)])], plain_sum())),
        ("E-COMBO", lambda: pipeline(SPACE, ENDING, plain_sum())),
        ("E-COMBO", lambda: pipeline(SPACE, [*ENDING, wrap()], plain_sum())),
        (
            "E-WRAP",
            lambda: pipeline(SPACE, [clip(1.0), rotate(64), discrete_gaussian_noise(1.0), wrap(16)], ring_sum()),
        ),
    ],
)
def test_what_does_not_compose_is_refused(code: str, make: object) -> None:
    with pytest.raises(CompositionError) as caught:
        make()  # type: ignore[operator]
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(("wrong", "step"), [(9, -1), (30, 1), (32, 1)])
def test_the_fix_for_a_ring_of_the_wrong_size_works(wrong: int, step: int) -> None:
    with pytest.raises(CompositionError) as caught:
        chain(clip(1.0), rotate(64), bits=wrong)
    bits = int(caught.value.fix.split("bits = ")[1].split()[0])
    pipe = chain(clip(1.0), rotate(64), bits=bits)
    pipe.encode(np.ones(SPACE.dim, np.float32), {}, 1.0, Memory(), Turn(0, KEY, derive(KEY, 1)))  # type: ignore[attr-defined]
    with pytest.raises(CompositionError):
        chain(clip(1.0), rotate(64), bits=bits + step)  # and it is the nearest that does


def _noise(z: float) -> tuple[np.ndarray, float, float]:
    """Errors of 40 sums of 10 updates, with the promised and the honest part of the noise."""
    pipe = chain(clip(1.0), rotate(64), z=z)
    space, off = pipe.encoded, []  # type: ignore[attr-defined]
    assert space.grid.kind is Kind.RING
    for i in range(40):
        total, public, true = pipe.start_sum(), derive(KEY, "p", i), np.zeros(SPACE.dim)  # type: ignore[attr-defined]
        for j in range(10):
            x = np.random.default_rng(100 * i + j).normal(size=SPACE.dim).astype(np.float32)
            true += x / np.linalg.norm(x)
            payload, _ = pipe.encode(x, {}, 1.0, Memory(), Turn(0, public, derive(KEY, "d", i, j)))  # type: ignore[attr-defined]
            total = pipe.add(total, payload, Turn(0, public))  # type: ignore[attr-defined]
        mean, _ = pipe.release(total, Turn(0, public), KEY, Memory())  # type: ignore[attr-defined]
        off.append(mean.mean * 10 - true)
    return np.stack(off), space.noise.std, pipe.total.noise_std  # type: ignore[attr-defined]


@pytest.mark.slow
def test_sums_carry_the_promised_noise() -> None:
    off, share, promised = _noise(2.0)
    assert off.std() == pytest.approx(sqrt(10) * share, rel=0.02)  # all ten were honest
    assert promised == pytest.approx(sqrt(7) * share)  # eight survivors, of which one may be corrupt
    assert promised == pytest.approx(2.0, rel=0.02)  # z C
    assert abs(off.mean()) < 5 * off.std() / sqrt(off.size)


def test_shares_differ_between_devices_and_rounds() -> None:
    pipe = chain(clip(1.0), rotate(64))
    x = np.zeros(SPACE.dim, np.float32)
    bodies = [
        pipe.encode(x, {}, 1.0, Memory(), Turn(r, KEY, derive(KEY, d)))[0].body  # type: ignore[attr-defined]
        for r in (0, 1)
        for d in ("a", "b")
    ]
    assert len({b.tobytes() for b in bodies}) == 4


@pytest.mark.parametrize("bits", [13, 20, 29])
def test_a_contribution_may_fill_the_whole_ring(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """A value beyond the bound comes back from the other side, as residues do."""
    half = 1 << bits - 1
    given_ = np.resize(np.array([half - 1, -half, half, -half - 1, 0, half // 2 + 1]), SPACE.dim)
    monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: given_)
    pipe = chain(clip(1.0), rotate(64), bits=bits)
    payload, _ = pipe.encode(np.zeros(SPACE.dim, np.float32), {}, 1.0, Memory(), Turn(0, KEY, KEY))  # type: ignore[attr-defined]
    back = payload.body.astype(np.int64)
    assert np.where(back >= half, back - 2 * half, back)[:6].tolist() == [
        half - 1,
        -half,
        -half,
        half - 1,
        0,
        half // 2 + 1,
    ]
