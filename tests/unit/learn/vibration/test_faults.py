"""Measures of a model that names faults."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.learn.vibration.faults import measured
from edgewise.plan.recipe.vibration import VibrationSection

NAMES = ("B_14", "B_7", "Normal")


def test_shares_are_of_their_own_windows() -> None:
    label = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    named = np.array([0, 2, 1, 0, 1, 2, 2, 0])
    found = measured(named, label, NAMES, VibrationSection())
    assert found == pytest.approx({"accuracy": 0.5, "early": 0.5, "false_alarms": 0.5, "missed": 2 / 6})


def test_a_share_of_no_window_is_left_out() -> None:
    label = np.array([0, 0])
    found = measured(label, label, NAMES, VibrationSection())
    assert found == {"accuracy": 1.0, "missed": 0.0}
