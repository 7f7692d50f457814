"""Figures of perplexity over devices, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest

from edgewise.apps.report import quality


def test_definitions_on_numbers_that_can_be_checked_by_hand() -> None:
    q = quality.figures({"a": (100 * math.log(10), 100), "b": (300 * math.log(20), 300), "c": (0.0, 100)})
    assert q is not None
    assert q["weighted_mean"] == pytest.approx(math.exp((100 * math.log(10) + 300 * math.log(20)) / 500))
    assert q["median"] == pytest.approx(10)
    assert q["worst_decile"] == pytest.approx(20), "ceil(3 / 10) = 1 device"
    assert (q["devices"], q["tokens"]) == (3, 500)


def test_worst_decile_rounds_up() -> None:
    q = quality.figures({f"d{i:02}": (math.log(i + 1), 1) for i in range(21)})
    assert q is not None
    assert q["worst_decile"] == pytest.approx((19 + 20 + 21) / 3), "ceil(21 / 10) = 3 devices"


def test_nothing_measured_is_none_and_overflow_is_infinite() -> None:
    assert quality.figures({}) is None
    assert quality.perplexity(1e6, 1) == math.inf
    assert quality.perplexity(1.0, 0) == math.inf
