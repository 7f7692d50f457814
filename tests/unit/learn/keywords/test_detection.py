"""False negatives at a share of false alarms, against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.learn.keywords.detection import false_negatives


def by_definition(scores: np.ndarray, label: np.ndarray, keyword: int, allowed: float) -> float:
    """Try each threshold."""
    own, others = scores[label == keyword, keyword], scores[label != keyword, keyword]
    fits = [t for t in [-np.inf, *scores[:, keyword]] if np.sum(others > t) <= allowed * len(others) + 1e-12]
    return float(np.mean(own <= min(fits)))


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-4, 4)), min_size=3, max_size=40),
    st.sampled_from([0.01, 0.1, 0.5]),
)
def test_it_equals_the_definition(rows: list[tuple[int, int]], allowed: float) -> None:
    label = np.array([0, *(label for label, _ in rows)])
    scores = np.repeat(np.array([0.5, *(float(score) for _, score in rows)])[:, None], 3, axis=1)
    assert false_negatives(scores, label, 0, allowed) == pytest.approx(by_definition(scores, label, 0, allowed))


def test_a_perfect_and_a_blind_score() -> None:
    label = np.repeat([0, 1], 100)
    perfect = np.stack([label == 0, label == 1], axis=1).astype(float)
    assert false_negatives(perfect, label, 0, 0.01) == 0.0
    assert false_negatives(np.zeros((200, 2)), label, 0, 0.01) == 1.0
