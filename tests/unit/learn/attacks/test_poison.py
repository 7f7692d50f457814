"""Updates that liars craft, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.learn.attacks.poison import Attack, crafted

OWN = np.array([1.0, -2.0], np.float32)
ALL = [OWN, np.array([3.0, 2.0], np.float32)]


@pytest.mark.parametrize(
    ("attack", "want"),
    [
        ("none", [1.0, -2.0]),
        ("flip", [-3.0, 6.0]),
        ("ipm", [-1.0, 0.0]),
        ("alie", [2.0 - 1.5 * 1.0, 0.0 - 1.5 * 2.0]),
        ("mimic", [1.0, -2.0]),
        ("free", [0.0, 0.0]),
    ],
)
def test_by_hand(attack: Attack, want: list[float]) -> None:
    found = crafted(attack, OWN, ALL)
    assert found.tolist() == want
    assert found.dtype == np.float32
    assert crafted("mimic", ALL[1], ALL).tolist() == [1.0, -2.0], "all send that of the first"
