"""Clip and noise on the vectors of tokens: bounds, size of the noise, its epsilon, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import RecipeError
from edgewise.core.keys import derive, generator, root
from edgewise.privacy import accountant
from edgewise.privacy.token_noise import TokenNoise, token_epsilon, token_promise

HIDDEN = 64


def vectors(count, scale=1.0):
    return (scale * generator(root(0)).normal(size=(count, HIDDEN))).astype(np.float32)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_no_vector_is_longer_than_the_clip_and_short_ones_stay(scale):
    x = vectors(200, scale)
    x[0] = 0.0
    found = TokenNoise(2.0, 1.0, HIDDEN).clipped(x)
    assert np.linalg.norm(found, axis=1).max() <= 2.0
    short = np.linalg.norm(x.astype(np.float64), axis=1) <= 2.0
    np.testing.assert_array_equal(found[short], x[short])
    assert short.any()


def test_noise_has_the_size_that_was_asked_and_lies_on_its_grid():
    noise = TokenNoise(2.0, 0.5, HIDDEN)
    x = vectors(2000, 0.01)
    moved = noise.hide(x, derive(root(1), "secret")).astype(np.float64) - x
    assert np.std(moved) == pytest.approx(1.0, rel=0.02)
    assert abs(moved.mean()) < 0.02
    again = noise.hide(x, derive(root(1), "another"))
    assert not np.array_equal(again, noise.hide(x, derive(root(1), "secret")))
    big = noise.hide(np.zeros((4, HIDDEN), np.float32), root(3)).astype(np.float64) / noise.grid.step
    np.testing.assert_array_equal(big, np.rint(big))


def test_epsilon_is_that_of_replaced_vectors_over_all_crossings():
    """Two vectors are twice the clip apart. A token sends two in a pass. k of them have sqrt(k) times less noise."""
    assert token_epsilon(3.0, 1, 1e-5) == pytest.approx(accountant.gaussian_epsilon(1.5 / 2**0.5, 1e-5), rel=1e-4)
    assert token_epsilon(3.0, 3, 1e-5) == pytest.approx(accountant.gaussian_epsilon(1.5 / 6**0.5, 1e-5), rel=1e-4)
    assert "no promise about the text" in token_promise(3.0, 5)


@pytest.mark.parametrize(("clip", "z"), [(0.0, 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, float("nan"))])
def test_a_clip_or_noise_that_bounds_nothing_is_refused(clip, z):
    with pytest.raises(RecipeError) as refused:
        TokenNoise(clip, z, HIDDEN)
    assert refused.value.code == "E-VALUE"


def test_a_value_that_is_not_finite_is_refused():
    x = vectors(2)
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        TokenNoise(1.0, 1.0, HIDDEN).hide(x, root(0))
