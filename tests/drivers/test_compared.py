"""A run whose server sees each update compares them, round by round, and shows them in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from played import play

from edgewise.apps.report import participation, summary
from edgewise.core import events
from edgewise.core.errors import RecipeError
from edgewise.drivers.storage.run_store import RunStore

ROBUST = {"merge": {"kind": "screened", "byzantine": 1}, "stage": [], "round.minimum": 1.0, "round.rounds": 2}


def test_each_update_of_each_round_is_compared(tmp_path: Path) -> None:
    _, told, _ = play(tmp_path / "a", ROBUST)
    accepted = {(e.round, e.device) for e in told if isinstance(e, events.Accepted)}
    found = [e for e in told if isinstance(e, events.Compared)]
    assert {(e.round, e.device) for e in found} == accepted
    assert len(found) == len(accepted)
    assert all(e.l2 > 0 for e in found)
    with RunStore(tmp_path / "a") as store:
        s = summary.build(store)
    assert {d["compared"]["rounds"] for d in s["per_device"]} == {2}
    assert "Updates compared" in participation.section(s)


@pytest.mark.slow
def test_a_trusted_device_is_one_of_the_run(tmp_path: Path) -> None:
    trusted = {"stage": [], "round.minimum": 1.0, "round.rounds": 1}
    with pytest.raises(RecipeError, match="'nobody' is no device of this run"):
        play(tmp_path / "a", {**trusted, "merge": {"kind": "fltrust", "root": "nobody"}})
    _, told, _ = play(tmp_path / "b", {**trusted, "merge": {"kind": "fltrust", "root": "d00000"}})
    lengths = {e.device: e.l2 for e in told if isinstance(e, events.Compared)}
    [moved] = [e.update_l2 for e in told if isinstance(e, events.RoundFinished)]
    assert 0 < moved <= lengths["d00000"] * (1 + 1e-6)
