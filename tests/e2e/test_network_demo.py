"""The demonstration on real devices: five agents, a server and TLS."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import done


@pytest.mark.slow
@pytest.mark.long(sample=0)
def test_five_processes_train_together_and_the_report_compares(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    short = [
        "--set",
        "round.rounds=1",
        "--set",
        "training.local_steps=1",
        "--set",
        "compare.longer=0",
        "--set",
        "personal.steps=1",
    ]
    found = done("demo", "--network", "--out", str(out), *short)
    assert Path(found["report"]).is_file()
    summary = found["summary"]
    assert summary["participation"]["accepted"] == 5
    assert all(summary["perplexity"][name] for name in ("base", "local_only", "federated", "personal"))
    for home in (out / "devices").iterdir():
        assert "masked update" in (home / "left.jsonl").read_text()
    assert list((out / "gateway" / "cache").iterdir()), "devices reach the server by the gateway"


@pytest.mark.slow
@pytest.mark.long(sample=0)
def test_the_edge_workflow_is_played_with_noise_and_shares_at_a_gateway(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    out = tmp_path / "demo"
    short = ["round.rounds=1", "eval.every=0", "personal.steps=1", "distill.every=1", "distill.steps=1"]
    found = done("demo", "edge-llm", "--network", "--out", str(out), *(x for one in short for x in ("--set", one)))
    summary = found["summary"]
    assert summary["participation"]["accepted"] == 5
    assert summary["plan"]["privacy"]["servers"] == 2
    assert 0 < summary["plan"]["privacy"]["card"]["against_server"] < 100
    assert len((out / "gateway" / "devices.txt").read_text(encoding="ascii").split()) == 5
