"""The adaptive clip: its anchors, what it costs, and that it finds the median of norms."""

from __future__ import annotations

from math import hypot

import numpy as np
import pytest

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, derive, generator, root
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.merges.plain import plain_sum
from edgewise.privacy.adaptive import CLIP, adaptive_clip, bit_noise, split
from edgewise.privacy.noise import noise

KEY = root(6)
SPACE = Space(30, Quorum(2, 400), universe=30, population=400)


def test_anchors() -> None:
    assert split(1.0, bit_noise(100)) == pytest.approx(1.0050, abs=5e-5)
    with pytest.raises(CompositionError) as caught:
        split(4.0, bit_noise(32))
    assert caught.value.code == "E-VALUE"


def test_update_and_bit_together_cost_z() -> None:
    z, m = 1.5, 200
    pipe = pipeline(SPACE, [adaptive_clip(0.1, z, m)], plain_sum(), [noise(z)])
    std = pipe.total.noise_std  # on body and bit alike
    z_delta, s = split(z, bit_noise(m)), split(z, bit_noise(m)) / bit_noise(m)
    assert std == pytest.approx(z_delta, rel=2e-5)  # the body's own bound is 1
    assert std / s == pytest.approx(bit_noise(m), rel=2e-5)  # in units of bits
    assert (z_delta**-2 + (2 * bit_noise(m)) ** -2) ** -0.5 == pytest.approx(z)
    assert pipe.total.sensitivity == pytest.approx(hypot(1.0, s / 2))


def test_no_update_exceeds_the_clip_and_the_mean_comes_back_in_model_units() -> None:
    pipe = pipeline(SPACE, [adaptive_clip(2.0, 0.5, 200)], plain_sum())
    x = np.ones(30, np.float32)
    for clip, length in ((0.0, 2.0), (0.5, 0.5), (100.0, np.sqrt(30))):
        turn = Turn(0, KEY, KEY, clip=clip)
        payload, _ = pipe.encode(x, {}, 1.0, {}, turn)
        assert np.linalg.norm(payload.body.astype(np.float64)) <= 1.0
        total = pipe.add(pipe.start_sum(), payload, turn)
        memory = {CLIP: np.array([clip or 2.0])}
        mean, after = pipe.release(total, turn, KEY, memory)
        assert np.linalg.norm(mean.mean) == pytest.approx(length, rel=1e-5)
        assert (after[CLIP][0] < memory[CLIP][0]) == (length == pytest.approx(np.sqrt(30)))  # below: C shrinks


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_clip_finds_the_median(start: float) -> None:
    pipe = pipeline(SPACE, [adaptive_clip(start, 1.0, 200)], plain_sum(), [noise(1.0)])
    rng, memory = generator(KEY), pipe.start_memory()
    for round in range(80):
        turn, total = Turn(round, KEY, KEY, clip=float(memory[CLIP][0])), pipe.start_sum()
        for norm in np.exp(rng.normal(0.0, 0.5, 200)):
            x = np.zeros(30, np.float32)
            x[0] = norm
            payload, _ = pipe.encode(x, {}, 1.0, {}, turn)
            total = pipe.add(total, payload, turn)
        _, memory = pipe.release(total, turn, derive(KEY, round), memory)
    assert float(memory[CLIP][0]) == pytest.approx(1.0, rel=0.35)
