"""The audit of one run: canaries in a single release, or in all rounds of correlated noise."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.apps.audit import epsilon
from edgewise.privacy import audit_findings, distributed, grid, matrix
from edgewise.privacy.accountant import gaussian_epsilon
from support.audited import POISSON, RUNS, SPEC, WORDS, plan, quiet


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_one_run_of_honest_code_holds_and_sees_something(word):
    found = epsilon.audit_one_run(plan(word), 512, quiet)
    assert found.holds, found
    assert 0.25 * found.claimed < found.lower, found
    assert found.runs == 512


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_one_run_catches_noise_of_half_the_size(monkeypatch, word):
    assert epsilon.audit_one_run(plan(word), 4096, quiet).holds
    true = grid.discrete_gaussian
    for module in (distributed, grid):
        monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: true(max(1, s // 2), n, key))
    assert not epsilon.audit_one_run(plan(word), 4096, quiet).holds


@pytest.mark.slow
def test_one_run_catches_missing_noise(monkeypatch):
    monkeypatch.setattr(grid, "grid_noise", lambda on, n, key: np.zeros(n, np.int64))
    for word in ("central_dp", "local_dp"):
        found = epsilon.audit_one_run(plan(word), 512, quiet)
        assert not found.holds, found
        assert found.guessed == audit_findings.OneRunGuesses(114, 114, pytest.approx(3.6, abs=0.1))


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "population", "more"),
    [
        ("central_dp", 400, POISSON),
        ("central_dp", 100, {"round__rounds": 20, "round__sampling": "cyclic", "round__cohort": 25}),
        (
            "distributed_dp",
            100,
            {"round__rounds": 20, "round__sampling": "cyclic", "round__cohort": 25, "trust__malicious_fraction": 0.03},
        ),
        ("central_dp", 100, {"dp__noise_multiplier": 2.5}),
    ],
)
def test_one_run_is_at_the_plans_own_noise(monkeypatch, word, population, more):
    """The claim is of that one release, and the noise has the size that the plan has for its population."""
    it = plan(word, population, **more)
    sizes, true = [], grid.grid_noise
    monkeypatch.setattr(grid, "grid_noise", lambda on, n, key: sizes.append(n) or true(on, n, key))
    found = epsilon.audit_one_run(it, 512, quiet)
    assert found.claimed == pytest.approx(1 / it.spend.z, rel=0.02)
    assert found.epsilon_claimed == pytest.approx(gaussian_epsilon(1 / found.claimed, 1e-5))
    assert found.of == f"one release at noise multiplier {it.spend.z:.4g}"
    assert found.epsilon_claimed < it.spend.card.of_release or it.sampling.kind != "all"
    if word == "central_dp":
        assert set(sizes) == {SPEC.dim}  # real vectors of the model's own layout
    assert ("sampling" in " ".join(found.left_out)) == (it.sampling.kind == "poisson")


@pytest.mark.slow
def test_correlated_noise_is_tried_as_a_run():
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    found = epsilon.audit_one_run(it, 1024, quiet)
    assert found.claimed == pytest.approx(1 / it.spend.z)  # of all its rounds together
    assert found.epsilon_claimed == pytest.approx(it.spend.card.of_release, rel=1e-6)
    assert found.holds
    assert 0.4 * found.claimed < found.lower
    assert found.of == f"20 of 20 rounds of correlated noise at multiplier {it.spend.z:.4g}, a device in 5"
    short = epsilon.audit_one_run(it, 64, quiet, work=4 * 6 * SPEC.dim)
    assert short.of.startswith("6 of 20 rounds")
    assert short.claimed < found.claimed
    assert "correlation of noise over the rounds" in epsilon.mechanism_release(it, RUNS, quiet).left_out


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("broken", [matrix.secret_normals, matrix.matrix_sensitivity], ids=["normals", "sensitivity"])
def test_broken_correlated_noise_is_caught(monkeypatch, broken):
    monkeypatch.setattr(matrix, broken.__name__, lambda *args: broken(*args) / 2.0)
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    assert not epsilon.audit_one_run(it, 4096, quiet).holds


@pytest.mark.slow
def test_what_too_few_canaries_cannot_show_is_said():
    found = epsilon.audit_one_run(plan("central_dp", dp__noise_multiplier=0.3), 512, quiet)
    assert found.left_out[1:] == ("breaches: 512 canaries show a mu of 1.8 at most, 3.33 is claimed",)


@pytest.mark.slow
def test_noise_that_takes_back_too_much_is_caught(monkeypatch):
    """Every round is noised as it should be, and the sum of them is not."""
    true = matrix.step_noise_stream

    def greedy(blt, state, z):
        after, y = true(blt, state, z)
        if state.round % 5 == 0:  # the next rounds take all of it back
            return matrix.NoiseStream(after.round, after.buffers), y
        return after, np.zeros_like(y)

    monkeypatch.setattr(matrix, "step_noise_stream", greedy)
    it = plan("central_dp", round__rounds=20, dp__noise="correlated", round__sampling="cyclic", round__cohort=25)
    assert not epsilon.audit_one_run(it, 1024, quiet).holds
