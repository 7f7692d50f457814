"""Noise keeps the ratio that was asked for, and the model reads clips without their loudness."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.keys import root
from edgewise.learn.keywords.noise import noisy, readable

POWERS = np.random.default_rng(0).normal(-6.0, 2.0, (50, 10, 12)).astype(np.float32)


@pytest.mark.parametrize("ratio", [0.0, 5.0, 15.0])
def test_the_ratio_is_that_of_powers(ratio: float) -> None:
    added = np.exp(noisy(POWERS, ratio, 0.0, root(1)).astype(np.float64)) - np.exp(POWERS.astype(np.float64))
    found = 10.0 * np.log10(np.exp(POWERS.astype(np.float64)).mean((1, 2)) / added.mean((1, 2)))
    np.testing.assert_allclose(found, ratio, atol=0.01)


def test_ratios_scatter_and_the_key_decides() -> None:
    added = np.exp(noisy(POWERS, 5.0, 5.0, root(1)).astype(np.float64)) - np.exp(POWERS.astype(np.float64))
    found = 10.0 * np.log10(np.exp(POWERS.astype(np.float64)).mean((1, 2)) / added.mean((1, 2)))
    assert -0.1 < found.min() < 1.5
    assert 8.5 < found.max() < 10.1
    np.testing.assert_array_equal(noisy(POWERS, 5.0, 5.0, root(1)), noisy(POWERS, 5.0, 5.0, root(1)))
    assert not np.array_equal(noisy(POWERS, 5.0, 5.0, root(1)), noisy(POWERS, 5.0, 5.0, root(2)))


def test_the_model_reads_pairs_of_frames_without_loudness() -> None:
    read = readable(POWERS[:, :9])
    assert read.shape == (50, 4, 12)
    np.testing.assert_allclose(read.mean((1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(read.std((1, 2)), 1.0, atol=1e-4)
    np.testing.assert_allclose(readable(POWERS[:, :9] + 3.0), read, atol=1e-4)
