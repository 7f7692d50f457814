"""The formulas of ``benchmarks/continual.py``: transfer and the Page-Hinkley test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from benchmarked import names_of


@pytest.fixture(scope="module")
def continual() -> Iterator[dict[str, Any]]:
    """The names of the program."""
    with names_of("continual.py") as found:
        yield found


@pytest.mark.slow
def test_transfer_is_that_of_a_table_computed_by_hand(continual: dict[str, Any]) -> None:
    scores = [[-1.0, -4.0, -6.0], [-2.0, -2.0, -5.0], [-1.5, -3.0, -1.0]]
    found = continual["transfer"](scores, [-5.0, -5.0, -5.5])
    assert found["average"] == pytest.approx(-5.5 / 3)
    assert found["backward"] == pytest.approx((-0.5 - 1.0) / 2)
    assert found["forgetting"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["forward"] == pytest.approx((1.0 + 0.5) / 2)


@pytest.mark.slow
def test_forgetting_counts_from_the_best_score_and_backward_from_the_first(continual: dict[str, Any]) -> None:
    found = continual["transfer"]([[-3.0, -4.0, -4.0], [-1.0, -2.0, -4.0], [-2.0, -2.0, -1.0]], [-4.0] * 3)
    assert found["forgetting"] == pytest.approx((1.0 + 0.0) / 2)
    assert found["backward"] == pytest.approx((1.0 + 0.0) / 2)


@pytest.mark.slow
def test_page_hinkley_is_silent_on_a_fall_and_alarms_on_a_rise(continual: dict[str, Any]) -> None:
    watch = continual["PageHinkley"](delta=0.02, threshold=0.2)
    assert not any(watch.alarm(3.0 - 0.01 * i) for i in range(100))
    watch = continual["PageHinkley"](delta=0.02, threshold=0.2)
    assert not any(watch.alarm(2.0) for _ in range(10))
    assert watch.alarm(2.5)
    assert not watch.alarm(2.5)  # It has started anew.


@pytest.mark.slow
def test_alarms_are_delays_or_false(continual: dict[str, Any]) -> None:
    delays, missed, false = continual["detection"]([(0, 1), (0, 4), (0, 5), (2, 3)], 2, 3)
    assert sorted(delays) == [0, 1]
    assert missed == 1  # Device 1 noticed nothing.
    assert false == 2  # One is in the first window, one repeats.
