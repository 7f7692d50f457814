"""The measure of a keyword: how many of its clips are missed where the threshold allows a share of false alarms."""

from __future__ import annotations

from math import floor

import numpy as np

from edgewise.core.vector import Array


def false_negatives(scores: Array, label: Array, keyword: int, false_alarms: float) -> float:
    """Compute the share of a keyword's clips at or below the threshold of a share of false alarms.

    The threshold t is the lowest score for which at most ``false_alarms`` of the other keywords' clips score above t.
    These clips are all spoken words, so every negative is a hard one.

    Args:
        scores: float[n, keywords]. label: int[n], the spoken keywords.
        keyword: number of the measured keyword.
    Returns:
        A share in [0, 1]. 0.0 where no clip is the keyword.
    """
    own, others = scores[label == keyword, keyword], scores[label != keyword, keyword]
    if not len(own):
        return 0.0
    allowed = floor(false_alarms * len(others))
    threshold = -np.inf if allowed >= len(others) else np.sort(others)[::-1][allowed]
    return float(np.mean(own <= threshold))
