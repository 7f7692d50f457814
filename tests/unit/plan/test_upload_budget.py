"""The upload budget that a device sets itself, and what it believes of its link."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.plan.upload_budget import link_estimate, upload_budget


@pytest.mark.parametrize(
    ("elapsed_s", "up_mbit", "expected"),
    [
        (10.0, 1.0, 1.25e6),  # 10 s left at 125 kB/s
        (10.0, 8.0, 5e6),  # the cap
        (0.0, inf, 5e6),
        (19.9, inf, 5e6),
        (20.0, inf, 0.0),  # no time left: not even on a link without limit
        (30.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),  # nothing is known of the link
        (0.0, 0.1, 2.5e5),
    ],
)
def test_by_hand(elapsed_s: float, up_mbit: float, expected: float) -> None:
    assert upload_budget(5e6, 20.0, elapsed_s, up_mbit) == pytest.approx(expected)


@given(cap=st.floats(1, 1e9), until=st.floats(0, 1e6), elapsed=st.floats(0, 1e6), link=st.floats(0, 1e6) | st.just(inf))
def test_never_negative_never_above_the_cap_and_in_time(cap: float, until: float, elapsed: float, link: float) -> None:
    budget = upload_budget(cap, until, elapsed, link)
    assert 0.0 <= budget <= cap
    if budget and link < inf:
        assert elapsed + 8.0 * budget / (link * 1e6) <= until * (1 + 1e-9) + 1e-9


def test_what_is_believed_of_a_link() -> None:
    assert link_estimate([]) == 0.0
    assert link_estimate([4.0]) == pytest.approx(2.0), "half of the first measurement"
    assert link_estimate([4.0, 0.0]) == 0.0
    steady = [link_estimate([4.0] * n) for n in range(1, 30)]
    assert steady == sorted(steady)
    assert steady[-1] == pytest.approx(4.0, rel=0.01)
    # by hand: m = 1/4, v = 1/8; t = 1: v = 1/8 + (3/4 - 1/8) / 4, m = 1/4 + 3/16
    assert link_estimate([4.0, 1.0]) == pytest.approx(1.0 / (7 / 16 + 2 * 9 / 32))


def test_an_unsteady_link_is_believed_less_than_a_steady_one_of_the_same_mean() -> None:
    g = np.random.default_rng(0)
    unsteady = g.lognormal(0.0, 0.5, 40)
    steady = np.full(40, 1.0 / np.mean(1.0 / unsteady))
    assert link_estimate(unsteady.tolist()) < 0.8 * link_estimate(steady.tolist())


def test_estimates_hold_for_most_next_transfers() -> None:
    """On log-normal links of 30 % spread, nine in ten transfers are at least as fast as was believed."""
    g = np.random.default_rng(1)
    samples = g.lognormal(0.0, 0.3, (300, 12))
    kept = [link_estimate(row[:n].tolist()) <= row[n] for row in samples for n in range(1, 12)]
    assert np.mean(kept) > 0.9
