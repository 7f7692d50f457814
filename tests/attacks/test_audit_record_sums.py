"""The audit of records under secure aggregation: a canary record is found without noise, and bounded with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.apps.audit import epsilon, record_sum_trials
from edgewise.learn import dp_sgd
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import parse
from edgewise.privacy import record_noise
from edgewise.privacy.samplers import discrete_gaussian
from support.audited import SPEC, quiet

TEXT = """
privacy = "distributed_dp"
[dp]
unit = "example"
noise_multiplier = 4.0
delta = 1e-5
clip_l2 = 0.5
records = 100
[round]
rounds = 4
minimum = 0.9
[strategy]
kind = "fedavgm"
lr = 1.0
"""


def plan() -> Plan:
    return compile(parse(TEXT), SPEC, 10, BUILT_IN)


def of(name: str, found: list[Any]) -> Any:
    return next(one for one in found if one.name == name)


@pytest.mark.slow
def test_records_in_hidden_sums_hold_and_the_audit_is_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(epsilon.RUNS, True, 4096)
    found = epsilon.audit_epsilon(plan(), True, quiet)
    assert [one.name for one in found] == ["length", "mechanism", "one run"]
    assert all(one.holds for one in found), found
    assert of("mechanism", found).lower > 0.7 * of("mechanism", found).claimed
    assert of("length", found).lower > 0.97 * of("length", found).claimed


@pytest.mark.slow
def test_without_noise_every_canary_record_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_noise, "discrete_gaussian", lambda s, n, key: np.zeros(n, np.int64))
    found = record_sum_trials.audit_record_sums(plan(), 4096, 512, quiet)
    one_run = of("one run", found)
    assert not of("mechanism", found).holds
    assert not one_run.holds
    assert one_run.guessed.right == one_run.guessed.guesses


@pytest.mark.slow
def test_half_of_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_noise, "discrete_gaussian", lambda s, n, key: discrete_gaussian(max(1, s // 2), n, key))
    assert not of("mechanism", record_sum_trials.audit_record_sums(plan(), 4096, 512, quiet)).holds


@pytest.mark.slow
def test_records_without_a_clip_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum that is clipped device by device lets one record move it by several clips."""
    true = dp_sgd.clipped_sum

    def unclipped(model: Any, loss: Any, records: Any, flat: Any, clip: float, step: float, key: Any) -> Any:
        return true(model, loss, records, flat, 100.0 * clip, step, key)

    monkeypatch.setattr(dp_sgd, "clipped_sum", unclipped)
    [found] = record_sum_trials.audit_record_sums(plan(), 1024, 64, quiet)
    assert not found.holds
    assert found.lower > 3.0 * found.claimed
