"""Quality of models: perplexity of one device and over devices, from summed held-out losses.

``apps.report.summary`` defines each figure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from edgewise.apps.report import numbers
from edgewise.apps.report.alone_or_together import Measures
from edgewise.engine.evaluation import COHORT

MODELS = tuple(numbers.MODELS)


def perplexity(nll: float, tokens: float) -> float:
    """Compute exp(nll / tokens). inf if it overflows or nothing was measured."""
    try:
        return math.exp(nll / tokens)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def figures(measures: Measures) -> dict[str, Any] | None:
    """Compute the figures of one model over devices, as the module defines them. None if nothing was measured."""
    if not measures:
        return None
    each = sorted(perplexity(*m) for m in measures.values())
    worst = each[-math.ceil(len(each) / 10) :]
    tokens = sum(t for _, t in measures.values())
    alone = set(measures) == {COHORT}  # Then only the mean over devices is known.
    return {
        "weighted_mean": perplexity(sum(nll for nll, _ in measures.values()), tokens),
        "median": None if alone else statistics.median(each),
        "worst_decile": None if alone else statistics.fmean(worst),
        "best": each[0],
        "worst": each[-1],
        "low": each[(len(each) - 1) // 10],
        "high": each[-1 - (len(each) - 1) // 10],
        "devices": 0 if alone else len(each),
        "tokens": tokens,
    }


def change_percent(new: Mapping[str, Any] | None, old: Mapping[str, Any] | None) -> float | None:
    """Compute 100 (new / old - 1) of the weighted means. None if one is missing or the old one is not finite."""
    if new is None or old is None or not math.isfinite(old["weighted_mean"]):
        return None
    return float(100.0 * (new["weighted_mean"] / old["weighted_mean"] - 1.0))
