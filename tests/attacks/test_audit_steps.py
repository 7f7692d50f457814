"""The audit of DP-SGD: its steps at the recipe's noise, and what breaks them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.apps.audit import epsilon, record_trials
from edgewise.drivers.simulation import keys
from edgewise.learn import dp_sgd, train
from edgewise.privacy import grid
from edgewise.privacy.noise import secret_normals
from support.audited import forgetful, plan, quiet


@pytest.mark.slow
@pytest.mark.parametrize("by", [1, -1])
def test_noise_that_comes_again_in_the_next_step_is_caught(monkeypatch, by):
    """By a difference, or by a sum where it comes back with the other sign."""
    key_of, noise_of, last = train.derive, grid.grid_noise, [0]

    def derive(key, label, *of):
        last[0] = of[0]
        return key_of(key, label, 0)

    monkeypatch.setattr(train, "derive", derive)
    monkeypatch.setattr(grid, "grid_noise", lambda *of: by ** last[0] * noise_of(*of))
    found = record_trials.audit_record_steps(plan("example"), 1024, quiet)
    assert not found.holds
    assert found.lower > 2.0 * found.claimed


@pytest.mark.slow
def test_noise_of_steps_that_comes_again_in_the_next_round_is_caught(monkeypatch):
    forgetful(monkeypatch, keys)
    assert not record_trials.audit_record_steps(plan("example"), 1024, quiet).holds


@pytest.mark.slow
def test_steps_of_dp_sgd_hold_at_the_recipes_noise():
    it = plan("example")
    mechanism, grain, run = (
        *record_trials.audit_record_mechanism(it, 4096, quiet),
        record_trials.audit_records_in_one_run(it, 4096, quiet),
    )
    for found in (mechanism, grain, run):
        assert found.holds, found
        assert found.claimed == pytest.approx(1 / it.spend.z)
        assert f"noise multiplier {it.spend.z:.4g} and clip 0.5" in found.of
        assert len(found.left_out) == 2
    assert mechanism.tight
    two = record_trials.audit_record_steps(it, 4096, quiet)
    assert two.holds, two
    assert two.claimed == pytest.approx(2.0**0.5 / it.spend.z)
    assert two.lower > 0.6 * two.claimed
    assert 0.5 * run.claimed < run.lower
    assert grain.lower < 0.2 * grain.claimed  # one grid in both worlds


def in_floats(model, loss, records, flat, dp, expected, key):
    """DP-SGD's step as it is often written: float32 noise on a float32 sum."""
    total = torch.zeros_like(flat.g_D)
    for _, record in records:
        flat.zero_grad()
        loss(model, record)[0].backward()
        norm = float(torch.linalg.vector_norm(flat.g_D, dtype=torch.float64))
        total.add_(flat.g_D, alpha=min(1.0, dp.clip * (1.0 - 2.0**-20) / max(norm, 1e-30)))
    drawn = (dp.z * dp.clip * secret_normals(key, total.numel())).astype(np.float32)
    flat.zero_grad()
    flat.g_D.copy_((total + torch.from_numpy(drawn)) / expected)
    return 0.0, 1.0


@pytest.mark.slow
def test_noise_in_floating_point_is_caught_by_its_last_bits(monkeypatch):
    """Of the right size, so that nothing else sees it."""
    monkeypatch.setattr(dp_sgd, "noised_gradient", in_floats)
    mechanism, grain = record_trials.audit_record_mechanism(plan("example", dp__epsilon=1.0), 1 << 16, quiet)
    assert mechanism.holds
    assert not grain.holds, grain
    assert grain.lower > 1.5 * grain.claimed


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("by", [np.sqrt(2.0), 2.0])
def test_too_little_noise_of_dp_sgd_is_caught(monkeypatch, by):
    true = grid.discrete_gaussian
    monkeypatch.setattr(grid, "discrete_gaussian", lambda s, n, key: true(round(s / by), n, key))
    mechanism, _, _, run = epsilon.audit_epsilon(plan("example"), True, quiet)
    assert not mechanism.holds
    assert mechanism.lower == pytest.approx(by * mechanism.claimed, rel=0.1)
    assert run.lower > 0


@pytest.mark.long(sample=0)
@pytest.mark.slow
def test_a_missing_clip_of_dp_sgd_is_caught(monkeypatch):
    monkeypatch.setattr(dp_sgd, "min", lambda *_: 1.0, raising=False)  # of 1 and C / norm
    mechanism, _, _, run = epsilon.audit_epsilon(plan("example"), True, quiet)
    assert not mechanism.holds
    assert mechanism.lower > 3 * mechanism.claimed
    assert not run.holds
