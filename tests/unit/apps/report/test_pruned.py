"""A run whose last pruning round had no sum says that its model has more weights than it was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from edgewise.apps.report import pruned
from edgewise.core import events
from edgewise.plan.recipe.prune import PruneSection

RECIPE: dict[str, Any] = {"round": {"rounds": 4}, "prune": {"to": 0.5}}


def finished(*met: bool) -> list[events.RoundFinished]:
    counts = {"accepted": 0, "lost": 0, "late": 0, "bytes_up": 0, "bytes_down": 0}
    times = {"train_s": 0.0, "encode_s": 0.0, "aggregate_s": 0.0, "seconds": 0.0}
    return [
        events.RoundFinished(round=i, met=one, head={}, update_l2=0.0, model="", **counts, **times)
        for i, one in enumerate(met)
    ]


def test_a_run_that_reached_its_target_says_so() -> None:
    found = pruned.figures(RECIPE, finished(True, False, False, True), 4)
    assert found == {"wanted": 0.5, "zero": 0.5}
    assert "50 % of each matrix" in pruned.pruning_panel({"pruning": found})
    assert "asks for" not in pruned.pruning_panel({"pruning": found})


@pytest.mark.parametrize(
    ("met", "played", "after"),
    [((True, True, True, False), 4, 3), ((False,) * 4, 4, 0), ((True,) * 4, 2, 2)],
    ids=["the last round had no sum", "no round had one", "an earlier model counts"],
)
def test_a_target_that_is_missed_is_said(met: tuple[bool, ...], played: int, after: int) -> None:
    found = pruned.figures(RECIPE, finished(*met), played)
    assert found == {"wanted": 0.5, "zero": PruneSection(to=0.5).pruned(after, 4)}
    assert found["zero"] < 0.5
    assert "The recipe asks for 50 %." in pruned.pruning_panel({"pruning": found})


def test_a_run_without_pruning_says_nothing() -> None:
    assert pruned.figures({"round": {"rounds": 4}}, finished(True), 1) is None
    assert pruned.pruning_panel({"pruning": None}) == ""
