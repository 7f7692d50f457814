"""Measures of a model that names faults: accuracy, that of early faults, false alarms, and missed faults."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np

from edgewise.core.vector import Array
from edgewise.plan.recipe.vibration import VibrationSection

MEASURES = ("accuracy", "early", "false_alarms", "missed")


def measured(named: Array, label: Array, names: Sequence[str], section: VibrationSection) -> dict[str, float]:
    """Measure the states that a model named.

        accuracy       share of all windows that are named rightly
        early          share of windows of early faults that are named rightly
        false_alarms   share of healthy windows that are named faulty
        missed         share of faulty windows that are named healthy

    Args:
        named, label: int[n], places in ``names``.
    Returns:
        Shares in [0, 1]. A share of no window is left out.
    """
    healthy = names.index(section.healthy)
    early = [i for i, name in enumerate(names) if any(fnmatchcase(name, pattern) for pattern in section.early)]
    shares = {
        "accuracy": (named == label)[np.ones(len(label), bool)],
        "early": (named == label)[np.isin(label, early)],
        "false_alarms": (named != healthy)[label == healthy],
        "missed": (named == healthy)[label != healthy],
    }
    return {name: float(share.mean()) for name, share in shares.items() if share.size}
