"""The event log of one small run, to the digit: a change here is a change of behaviour and has to be explained.

Rewrite with ``EDGEWISE_REWRITE_GOLDEN=1 pytest tests/e2e/test_golden.py``.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from toy_recipe import make_recipe

from edgewise.apps import simulate
from edgewise.core import events

GOLDEN = Path(__file__).parent / "golden_events.jsonl"
CLOCKS = {"at_s", "seconds", "train_s", "encode_s", "aggregate_s"}


def line(event):
    """One event without wall-clock times; floats to nine digits, so that only real changes show."""
    plain = msgspec.to_builtins(event)
    return msgspec.json.encode({k: _short(v) for k, v in plain.items() if k not in CLOCKS}).decode()


def _short(value):
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return value


def test_the_story_of_a_run(tmp_path):
    told = []
    recipe = make_recipe({"simulation.dropout": 0.15, "round.sampling": "fixed", "round.cohort": 4})
    simulate.run(recipe, out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], sinks=[told.append], report=False)
    log = [line(e) for e in told if not isinstance(e, events.Progress)]
    if os.environ.get("EDGEWISE_REWRITE_GOLDEN"):
        GOLDEN.write_text("\n".join(log) + "\n", encoding="utf-8")
    assert log == GOLDEN.read_text(encoding="utf-8").splitlines()
