"""The demo in small, with fewer rounds and measured devices: federating wins, and page and terminal say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgewise.apps.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = {
    "round.rounds": 4, "round.sampling": "fixed", "round.cohort": 12, "round.overselect": 1.0, "round.minimum": 0.75,
    "eval.devices": 4,
    "compare.longer_devices": 1, "eval.every": 0,
}  # fmt: skip


def test_the_demo_convinces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(main.app, ["demo", *sets, "--engine", "inproc", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    s = found["summary"]
    assert (s["complete"], s["population"]) == (True, 24)
    assert s["against_alone"]["better"] >= 3, "of four"
    assert s["against_alone"]["change_percent"] < -10
    assert s["change_percent"]["federated"] < -60
    own = s["perplexity"]["personal"]
    for figure in ("weighted_mean", "median", "worst_decile"):
        others = ("base", "local_only", "local_personal", "federated")
        assert own[figure] < min(s["perplexity"][name][figure] for name in others), figure
    assert (s["longer"]["times"], s["longer"]["devices"]) == (3, 1)
    page = (tmp_path / found["report"]).read_text(encoding="utf-8")
    assert "Training together did better than training alone" in page
    shown = capfd.readouterr().err
    assert "\nabout " in shown.split("federated rounds")[0], "a forecast stands before the first round"
    assert shown.startswith("24 characters of Shakespeare are the devices.")
