"""The event log of one small run: a change here is a change of behaviour and has to be explained.

Bits are promised per kind of processor, so figures are compared to six digits, and the models' digests are left out: a
model that is another one shows in the length of its update and in its losses.
Rewrite with ``EDGEWISE_REWRITE_GOLDEN=1 pytest tests/e2e/test_golden.py``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pytest
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events

GOLDEN = Path(__file__).parent / "golden_events.jsonl"
CLOCKS = {"at_s", "seconds", "train_s", "encode_s", "aggregate_s"}


def line(event):
    """One event without wall-clock times and without the model's digest."""
    leave_out = CLOCKS | ({"model"} if isinstance(event, events.RoundFinished) else set())
    return {k: _short(v) for k, v in msgspec.to_builtins(event).items() if k not in leave_out}


def _short(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {k: _short(v) for k, v in value.items()}
    return value


def alike(value):
    """Value to compare a stored one with: itself, or a figure with a tolerance."""
    if isinstance(value, dict):
        return {k: alike(v) for k, v in value.items()}
    return pytest.approx(value, rel=2e-6) if isinstance(value, float) else value


def test_the_story_of_a_run(tmp_path):
    told = []
    recipe = make_recipe({"simulation.dropout": 0.15, "round.sampling": "fixed", "round.cohort": 4})
    simulation.run(recipe, out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], sinks=[told.append], report=False)
    log = [line(e) for e in told if not isinstance(e, events.Progress)]
    if os.environ.get("EDGEWISE_REWRITE_GOLDEN"):
        text = "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in log)
        GOLDEN.write_text(text, encoding="utf-8")
    stored = [json.loads(one) for one in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert len(log) == len(stored)
    for now, then in zip(log, stored, strict=True):
        assert now == alike(then)
    # A sum of squares in float32 is a float32 whose last digits are the processor's; one in float64 hardly ever is.
    lengths = [e.update_l2 for e in told if isinstance(e, events.RoundFinished)]
    assert not any(float(np.float32(length)) == length for length in lengths)
