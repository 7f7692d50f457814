"""A small fleet, played as the benchmark of a million is."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "fleet_load.py"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the program, with a server that has room for few long polls."""
    found = runpy.run_path(str(PROGRAM), run_name="imported")
    limits = found["ServerLimits"]
    found["Server"].pauses.__globals__["ServerLimits"] = lambda: limits(waiting=20)
    return found


def test_hints_keep_the_load_of_a_small_fleet_level(small: dict[str, Any]) -> None:
    told = small["play"](2000, 3, 5.0, before=False, outage=False, cohort=20)
    assert 1.0 <= told["of_minutes"] < 1.3
    assert told["mean"] == pytest.approx(5.0 + 20 / 18.75, rel=0.05)
    assert told["writes_of_idle_check_ins"] == 0
    assert 26 < told["writes_per_round"] <= 4 * 26 + 4
    before = small["play"](2000, 3, 5.0, before=True, outage=False, cohort=20)
    assert before["mean"] > 5 * told["mean"]
