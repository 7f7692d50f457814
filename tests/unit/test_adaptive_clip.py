"""Adaptive clipping: the split of one multiplier, the bit, and a bound that finds its quantile."""

from __future__ import annotations

from math import exp, inf, nan, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.errors import RecipeError
from edgewise.privacy.accountant import epsilon, gaussian
from edgewise.privacy.adaptive import Split, bit, joint, split, updated
from edgewise.privacy.clip import LARGEST, SMALLEST
from edgewise.privacy.spend import gaussian as release


def test_published_split() -> None:
    assert split(1.0, 100) == Split(pytest.approx(1.0050, abs=5e-5), 5.0)
    # by hand: z = 1, sigma_b = 1: 1 / sqrt(1 - 1/4)
    assert split(1.0, 20).z_update == pytest.approx(2 / sqrt(3))
    assert split(1.0, 20, sigma_bits=5.0) == split(1.0, 100)


@pytest.mark.parametrize(("z", "expected"), [(4.0, 32), (3.2, 32), (1.0, 10)])
def test_a_cohort_too_small_for_the_bit_is_refused(z: float, expected: float) -> None:
    with pytest.raises(RecipeError, match="leaves nothing") as caught:
        split(z, expected)
    assert caught.value.code == "E-VALUE"
    assert f"more than {10 * z:.0f} devices" in caught.value.fix
    split(z, 10 * z + 0.01)  # what the fix says is enough


@given(st.floats(0.05, 20.0), st.floats(1.001, 1000.0))
def test_both_sums_together_are_one_release_of_z(z: float, spare: float) -> None:
    """A device that leaves moves the update by C and the bits by 1/2, each divided by its noise: 1/z in all."""
    found = split(z, 10.0 * z * spare)
    assert found.z_update >= z
    assert joint(found) == pytest.approx(z, rel=1e-9)
    together = epsilon({release(found.z_update): 1, release(2.0 * found.sigma_bits): 1}, 1e-5)
    assert together == pytest.approx(gaussian(z, 1e-5), rel=1e-6)


def test_the_bit_moves_the_sum_by_half() -> None:
    assert bit(1.0, 1.0) == bit(0.0, 1.0) == 0.5
    assert bit(1.0000001, 1.0) == bit(inf, 1.0) == bit(nan, 1.0) == -0.5


def test_the_bound_moves_by_the_papers_rule() -> None:
    # all within: b = 1, so C exp(-0.2 * 0.5); none within: C exp(0.2 * 0.5); a quarter at the quantile 1/4: as it was
    assert updated(2.0, 50.0, 100) == pytest.approx(2.0 * exp(-0.1))
    assert updated(2.0, -50.0, 100) == pytest.approx(2.0 * exp(0.1))
    assert updated(2.0, -25.0, 100, quantile=0.25) == pytest.approx(2.0)
    assert updated(2.0, 0.0, 100) == 2.0, "nobody came: half within, which is the quantile"
    assert updated(SMALLEST, 1e9, 100) == SMALLEST
    assert updated(LARGEST, -1e9, 100) == LARGEST
    for wrong in (nan, inf):
        with pytest.raises(RecipeError):
            updated(1.0, wrong, 100)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [1e-3, 1e3])
def test_it_finds_the_quantile_of_the_norms_under_noise(quantile: float, start: float) -> None:
    rng = np.random.default_rng(5)
    clip, m, seen = start, 200, []
    for _ in range(400):
        norms = rng.lognormal(0.0, 1.0, m)
        bits = sum(bit(float(x), clip) for x in norms) + rng.normal(0.0, split(1.0, m).sigma_bits)
        clip = updated(clip, bits, m, quantile)
        seen.append(clip)
    share = np.mean(rng.lognormal(0.0, 1.0, 100_000) <= np.median(seen[-150:]))
    assert share == pytest.approx(quantile, abs=0.03)
