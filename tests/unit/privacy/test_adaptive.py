"""The adaptive clip: its anchors, what it costs, and that it finds the median of norms."""

from __future__ import annotations

from math import hypot

import numpy as np
import pytest

from edgewise.codecs.project.low_rank import low_rank
from edgewise.codecs.select.random_k import random_k
from edgewise.codecs.select.top_k import top_k
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, derive, generator, root
from edgewise.core.memory import Memory
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Adjacency, Quorum, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.merges.plain import plain_sum
from edgewise.privacy.adaptive import CLIP, adaptive_clip, bit_noise, split_noise_multiplier
from edgewise.privacy.noise import noise

KEY = root(6)
SPACE = Space(30, Quorum(2, 400), population=400)


REACH = {"add_remove": 0.5, "zero_out": 1.0}  # how far a bit lies from what a neighbour sends
adjacencies = pytest.mark.parametrize("adjacency", REACH)


def test_anchors() -> None:
    assert split_noise_multiplier(1.0, bit_noise(100), "add_remove") == pytest.approx(1.0050, abs=5e-5)
    assert split_noise_multiplier(1.0, bit_noise(100), "zero_out") == pytest.approx(1.0206, abs=5e-5)
    for adjacency, z in (("add_remove", 3.2), ("zero_out", 1.6)):
        split_noise_multiplier(z * 0.999, bit_noise(32), adjacency)
        with pytest.raises(CompositionError) as caught:
            split_noise_multiplier(z, bit_noise(32), adjacency)
        assert caught.value.code == "E-VALUE"


@adjacencies
def test_update_and_bit_together_cost_z(adjacency: Adjacency) -> None:
    z, m, r = 1.5, 200, REACH[adjacency]
    pipe = pipeline(SPACE.but(adjacency=adjacency), [adaptive_clip(0.1, z, m)], plain_sum(), [noise(z)])
    std = pipe.total.noise_std  # on body and bit alike
    z_delta = split_noise_multiplier(z, bit_noise(m), adjacency)
    s = z_delta / bit_noise(m)
    assert std == pytest.approx(z_delta, rel=2e-5)  # the body's own bound is 1
    assert std / s == pytest.approx(bit_noise(m), rel=2e-5)  # in units of bits
    assert (z_delta**-2 + (r / bit_noise(m)) ** 2) ** -0.5 == pytest.approx(z)
    assert pipe.total.sensitivity == pytest.approx(hypot(1.0, r * s))


def clip_in(memory: Memory) -> float:
    """The clip of the next round, which the server remembers for the first stage."""
    return float(memory.child("stage", 0)[CLIP][0])


@adjacencies
def test_bits_are_counted_whatever_they_are_sent_as(adjacency: Adjacency) -> None:
    """Three updates below the clip and one above: the share that moves the clip is 3 / 4, without noise."""
    pipe = pipeline(SPACE.but(adjacency=adjacency), [adaptive_clip(1.0, 0.5, 200, quantile=0.75)], plain_sum())
    total, turn = pipe.start_sum(), Turn(0, KEY, KEY)
    for size in (0.0, 0.01, 0.1, 9.0):
        total = pipe.add(total, pipe.encode(np.full(30, size, np.float32), {}, 1.0, Memory(), turn)[0], turn)
    _, after = pipe.release(total, turn, KEY, pipe.start_memory())
    assert clip_in(after) == pytest.approx(1.0)


def test_no_update_exceeds_the_clip_and_the_mean_comes_back_in_model_units() -> None:
    pipe = pipeline(SPACE, [adaptive_clip(2.0, 0.5, 200)], plain_sum())
    x = np.ones(30, np.float32)
    for clip, length in ((None, 2.0), (0.5, 0.5), (100.0, np.sqrt(30))):
        turn = Turn(0, KEY, KEY, clip=clip)
        payload, _ = pipe.encode(x, {}, 1.0, Memory(), turn)
        assert np.linalg.norm(payload.body.astype(np.float64)) <= 1.0
        total = pipe.add(pipe.start_sum(), payload, turn)
        memory = Memory().put("stage", 0, Memory({CLIP: np.array([clip or 2.0])}))
        mean, after = pipe.release(total, turn, KEY, memory)
        assert np.linalg.norm(mean.mean) == pytest.approx(length, rel=1e-5)
        assert (clip_in(after) < clip_in(memory)) == (length == pytest.approx(np.sqrt(30)))  # below: C shrinks


@pytest.mark.parametrize(
    "before", [top_k(0.2), random_k(0.5, each=True), low_rank(Spec.of([("w", (5, 6), "float32")]), 2)]
)
def test_what_does_not_add_up_before_it_is_refused(before: Stage) -> None:
    """The server adds what stands before the clip and scales the sum: positions or factors of each device are lost."""
    with pytest.raises(CompositionError, match="E-NOT-SUMMABLE"):
        pipeline(SPACE, [before, adaptive_clip(1.0, 0.5, 200)], plain_sum())


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.01, 50.0])
def test_the_clip_finds_the_median(start: float) -> None:
    pipe = pipeline(SPACE, [adaptive_clip(start, 1.0, 200)], plain_sum(), [noise(1.0)])
    rng, memory = generator(KEY), pipe.start_memory()
    for round in range(80):
        turn, total = Turn(round, KEY, KEY, clip=clip_in(memory)), pipe.start_sum()
        for norm in np.exp(rng.normal(0.0, 0.5, 200)):
            x = np.zeros(30, np.float32)
            x[0] = norm
            payload, _ = pipe.encode(x, {}, 1.0, Memory(), turn)
            total = pipe.add(total, payload, turn)
        _, memory = pipe.release(total, turn, derive(KEY, round), memory)
    assert clip_in(memory) == pytest.approx(1.0, rel=0.35)
