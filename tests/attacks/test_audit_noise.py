"""The audit finds noise that is too small, known or drawn twice, in one release and over rounds, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.apps.audit import epsilon, record_trials, round_trials
from edgewise.core import keys
from edgewise.core.keys import generator, root
from edgewise.core.space import Quorum
from edgewise.drivers.simulation import keys as identities
from edgewise.learn import train
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.mechanisms import known
from edgewise.plan.recipe.recipe import parse
from edgewise.privacy import audit as bounds
from edgewise.privacy import distributed, grid, noise
from edgewise.privacy.audit_findings import gaussian_mu, upper_rate
from support.audited import RUNS, SPEC, WORDS, forgetful, keyed, lying_local, plan, quiet


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize(("word", "module", "label"), [
    ("central_dp", noise, "noise"), ("local_dp", keys, "local noise"), ("example", train, "dp"),
])  # fmt: skip
def test_noise_from_a_known_key_is_caught(monkeypatch, word, module, label):
    try_it = (
        record_trials.audit_record_mechanism if word == "example" else lambda *of: (epsilon.mechanism_release(*of),)
    )
    assert try_it(plan(word), 4096, quiet)[0].holds
    keyed(monkeypatch, module, label)
    found = try_it(plan(word), 4096, quiet)[0]
    assert not found.holds
    assert found.lower == bounds.REPEATED


@pytest.mark.slow
def test_corrupt_devices_counted_as_honest_are_caught(monkeypatch):
    """Every device then adds too little noise for those who are left."""
    of = {"merge__kind": "shared_sum", "trust__malicious_fraction": 0.45, "round__minimum": 1.0}
    assert epsilon.mechanism_release(plan("distributed_dp", **of), RUNS, quiet).holds
    monkeypatch.setattr(Quorum, "honest", property(lambda quorum: quorum.n_min))
    assert not epsilon.mechanism_release(plan("distributed_dp", **of), RUNS, quiet).holds


@pytest.mark.parametrize("sent", ["replace_one", "zero_out"])
def test_local_noise_that_counts_a_device_of_other_text_as_a_silent_one_is_caught(monkeypatch, sent):
    """Its epsilon is then told for half of how far its neighbour is, in the accountant alone or in the fold as well."""
    monkeypatch.setattr(known, "MECHANISMS", (lying_local(sent),))
    found = epsilon.audit_epsilon(plan("local_dp"), True, quiet)[0]
    assert not found.holds
    assert found.lower == pytest.approx(2.0 * found.claimed, rel=1e-3)


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("word", "modules"), [
    ("central_dp", (identities,)), ("local_dp", (identities, keys)), ("distributed_dp", (identities, keys)),
])  # fmt: skip
def test_noise_that_comes_again_in_the_next_round_is_caught(monkeypatch, word, modules):
    """Each release is noised as it should be; the difference of two is not."""
    found = round_trials.audit_two_rounds(plan(word), 1 << 12, quiet)
    assert found.holds, found
    assert found.lower > 0.6 * found.claimed
    forgetful(monkeypatch, *modules)
    found = round_trials.audit_two_rounds(plan(word), 1 << 12, quiet)
    assert not found.holds
    assert found.lower > 2.0 * found.claimed


def test_rates_have_their_coverage():
    assert upper_rate(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-3)
    assert upper_rate(100, 100, 0.95) == 1.0
    assert upper_rate(10, 100, 0.95) == pytest.approx(0.1637, abs=5e-4)


@pytest.mark.slow
def test_bounds_of_known_gaussians_are_below_and_near():
    rng = generator(root(5))
    found = [gaussian_mu(rng.normal(0, 1, 4000), rng.normal(1, 1, 4000)) for _ in range(12)]
    assert np.mean(found) > 0.75
    assert sum(f > 1.0 for f in found) <= 2  # 95 % confidence
    assert gaussian_mu(rng.normal(0, 1, 2000), rng.normal(0, 1, 2000)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_honest_code_passes_and_is_found_tight(word):
    found = epsilon.mechanism_release(plan(word), RUNS, quiet)
    assert found.holds, found
    assert found.tight, found
    assert found.claimed == pytest.approx(1.0, abs=0.05)
    assert found.epsilon_lower < found.epsilon_claimed


@pytest.mark.slow
@pytest.mark.long(sample=4)
@pytest.mark.parametrize("by", [np.sqrt(2.0), 2.0])
@pytest.mark.parametrize("word", WORDS)
def test_too_little_noise_is_caught(monkeypatch, word, by):
    true = grid.discrete_gaussian
    for module in (distributed, grid):
        monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: true(max(1, round(s / by)), n, key))
    assert not epsilon.mechanism_release(plan(word), RUNS, quiet).holds


@pytest.mark.slow
def test_the_share_of_corrupt_devices_is_counted(monkeypatch):
    """The sum has the noise of as few honest devices as are promised, and not that of all."""
    sent = []
    true = bounds.audited_round_release
    monkeypatch.setattr(bounds, "audited_round_release", lambda pipe, x, *a: true(pipe, sent.append(x) or x, *a))
    found = epsilon.mechanism_release(plan("distributed_dp", trust__malicious_fraction=0.2), RUNS, quiet)
    assert found.holds
    assert found.tight
    assert [len(x) for x in sent] == [16, 16]  # of 20
    assert "corrupt" in " ".join(
        epsilon.mechanism_release(plan("distributed_dp", trust__malicious_fraction=0.02), RUNS, quiet).left_out
    )


@pytest.mark.slow
def test_the_recipes_stages_are_played():
    """Those that keep coordinates apart in both trials, the others in one run, and they are named."""
    stages = [{"kind": "random_k", "fraction": 0.25}, {"kind": "clip", "l2": 0.5}, {"kind": "quantize", "bits": 8}]
    it = plan("central_dp", stage=stages)
    mechanism = epsilon.mechanism_release(it, RUNS, quiet)
    assert mechanism.runs == RUNS // 4
    assert mechanism.holds
    assert mechanism.tight
    rounds = "composition of a device's rounds"
    assert mechanism.left_out == ("quantize (behind it coordinates are not separate runs)", rounds)
    found = epsilon.audit_one_run(it, 512, quiet)
    assert found.holds
    assert 0.25 * found.claimed < found.lower, found  # scored along what the stages leave of a canary
    assert found.left_out == (rounds,)


def test_without_an_epsilon_nothing_is_tried():
    it = compile(parse('privacy = "none"'), SPEC, 10, BUILT_IN)
    assert epsilon.audit_epsilon(it, True, quiet) == []


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_metrics_under_the_noise_are_audited_with_the_update(word):
    of = plan(word, metrics="sum")
    for found in (epsilon.mechanism_release(of, RUNS, quiet), round_trials.audit_two_rounds(of, 1 << 12, quiet)):
        assert found.holds, found
    assert epsilon.audit_length(of).holds
