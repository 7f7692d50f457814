"""The rule that rejects a distilled student."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
from edgewise.learn.compress.rounds import scored_blocks, student_verdict


@pytest.mark.parametrize(
    ("before", "after", "wrote_before", "wrote", "reason"),
    [
        (20.0, 19.9, 0.8, 0.8, None),
        (20.0, 20.0, 0.8, 0.9, "perplexity"),
        (20.0, float("inf"), 0.8, 0.8, "perplexity"),
        (20.0, float("nan"), 0.8, 0.8, "perplexity"),
        (20.0, 10.0, 0.8, 0.7, "diversity"),
        (20.0, 10.0, 0.8, 0.73, None),
    ],
)
def test_a_student_is_kept_where_perplexity_falls_and_diversity_stays(
    before: float, after: float, wrote_before: float, wrote: float, reason: str | None
) -> None:
    assert student_verdict(before, after, wrote_before, wrote, 0.9) == reason


@pytest.mark.parametrize(("blocks", "most", "expected"), [(10, 64, [0, 5]), (10, 1, [0]), (3, 1000, [0, 1, 2])])
def test_the_text_that_decides_is_spread_evenly(blocks: int, most: int, expected: list[int]) -> None:
    held_NS = np.arange(blocks * 33).reshape(blocks, 33)
    assert (scored_blocks(held_NS, most)[:, 0] // 33).tolist() == expected
