"""The audit finds what it must find: noise that is too small, a clip that is missing; and nothing where all is well."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgewise.apps import audit
from edgewise.core.errors import AuditError
from edgewise.core.keys import generator, root
from edgewise.plan.recipe import parse
from edgewise.privacy import audit as bounds
from edgewise.privacy import distributed, noise
from edgewise.privacy.audit import gaussian_mu, one_run_epsilon, p_value, upper_rate

WORDS = {"distributed": "secure_sum", "central": "sum", "local": "sum"}
RUNS = {"distributed": 1 << 14, "central": 1 << 14, "local": 4000}


def recipe(word: str):
    return parse(f"""
privacy = "{word}"
[merge]
kind = "{WORDS[word]}"
[dp]
epsilon = 8.0
delta = 1e-5
clip_l2 = 0.5
[round]
rounds = 4
minimum = 0.9
""")


def quiet(*_: object) -> None:
    """No progress."""


@pytest.mark.parametrize(
    ("m", "r", "v", "eps", "delta", "expected"),
    [(1000, 100, 90, 1.0, 0.0, 2.7e-5), (1000, 100, 90, 2.0, 0.0, 0.342554), (1000, 100, 90, 2.0, 1e-5, 0.344987)],
)
def test_p_values(m, r, v, eps, delta, expected):
    assert p_value(m, r, v, eps, delta) == pytest.approx(expected, rel=0.02 if expected < 1e-3 else 1e-5)


def test_one_run_bounds():
    assert one_run_epsilon(1000, 100, 100, 1e-5) == pytest.approx(3.4654, abs=1e-4)
    assert one_run_epsilon(1000, 100, 90, 1e-5) == pytest.approx(1.6261, abs=1e-4)
    assert one_run_epsilon(10_000, 1000, 990, 1e-5) == pytest.approx(4.0212, abs=1e-4)
    assert one_run_epsilon(1000, 100, 52, 1e-5) == 0.0


def test_rates_have_their_coverage():
    assert upper_rate(0, 100, 0.95) == pytest.approx(1 - 0.05 ** (1 / 100), rel=1e-3)
    assert upper_rate(100, 100, 0.95) == 1.0
    assert upper_rate(10, 100, 0.95) == pytest.approx(0.1637, abs=5e-4)


def test_bounds_of_known_gaussians_are_below_and_near():
    rng = generator(root(5))
    found = [gaussian_mu(rng.normal(0, 1, 4000), rng.normal(1, 1, 4000)) for _ in range(12)]
    assert np.mean(found) > 0.75
    assert sum(f > 1.0 for f in found) <= 2  # 95 % confidence
    assert gaussian_mu(rng.normal(0, 1, 2000), rng.normal(0, 1, 2000)) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_honest_code_passes_and_is_found_tight(word):
    found = audit.mechanism(recipe(word), RUNS[word], quiet)
    assert found.holds, found
    assert found.tight, found
    assert found.epsilon_lower < found.epsilon_claimed


@pytest.mark.slow
def test_noise_of_half_the_size_is_caught(monkeypatch):
    true = distributed.discrete_gaussian
    monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: true(max(1, s // 2), n, key))
    assert not audit.mechanism(recipe("distributed"), 1 << 14, quiet).holds


@pytest.mark.slow
def test_noise_without_a_root_of_two_is_caught(monkeypatch):
    true = noise.normals
    monkeypatch.setattr(noise, "normals", lambda key, n: true(key, n) / np.sqrt(2.0))
    assert not audit.mechanism(recipe("central"), 1 << 14, quiet).holds
    assert not audit.mechanism(recipe("local"), 4000, quiet).holds


@pytest.mark.parametrize("word", ["central", "local"])
def test_a_missing_clip_is_caught(monkeypatch, word):
    import edgewise.plan.private as private
    from edgewise.core.stage import Stage

    true = private.clip

    def lazy(l2: float) -> Stage:
        honest = true(l2)
        return Stage(honest.name, honest.infer, lambda p, m, s, t: (p, m), honest.decode)

    monkeypatch.setattr(private, "clip", lazy)
    if word == "local":
        assert not audit.mechanism(recipe(word), 1000, quiet).holds
    else:  # the visible sum enforces the bound itself
        from edgewise.core.errors import DecodeError

        with pytest.raises(DecodeError):
            audit.mechanism(recipe(word), 10, quiet)


def test_one_run_of_canaries(monkeypatch):
    found = audit.one_run(recipe("central"), 300, quiet)
    assert found.holds
    monkeypatch.setattr(noise, "normals", lambda key, n: np.zeros(n))
    assert not audit.one_run(recipe("central"), 1000, quiet).holds


def test_a_broken_claim_fails_the_command(tmp_path, monkeypatch):
    """Exit status 8, with the figures on the disk."""
    from edgewise.apps import leakage

    broken = bounds.Finding("mechanism", 1.0, 1.5, 4.4, 7.0, 100, 0.95)
    monkeypatch.setattr(audit, "mechanism", lambda *_: broken)
    monkeypatch.setattr(audit, "one_run", lambda *_: broken)
    leak = {"what": "x", "span": 0.5, "rows": None, "base": 0.1, "tokens": 3, "seen": True}
    memory = {"what": "x", "auc": 0.5, "tpr_at_1": 0.0, "exposure": 1.0, "exposure_most": 8.0}
    monkeypatch.setattr(leakage, "examine", lambda *_: {"leaks": [leak], "memory": [memory], "tokens": 3})
    with pytest.raises(AuditError) as caught:
        audit.examine(recipe("central"), tmp_path, tmp_path / "out", quick=True)
    assert caught.value.exit_status == 8
    assert not json.loads((tmp_path / "out" / "audit.json").read_text())["findings"][0]["holds"]
    assert "must not run" in (tmp_path / "out" / "audit.html").read_text()
