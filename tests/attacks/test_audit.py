"""The audit finds what it must find: noise that is too small, a clip that is missing; and nothing where all is well."""

from __future__ import annotations

import json
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from edgewise.apps import audit
from edgewise.core.errors import AuditError
from edgewise.core.keys import generator, root
from edgewise.plan.recipe import parse
from edgewise.privacy import audit as bounds
from edgewise.privacy import distributed, noise
from edgewise.privacy.audit import gaussian_mu, upper_rate

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


@pytest.mark.slow
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


@pytest.mark.parametrize("word", WORDS)
def test_one_run_of_honest_code_holds_and_sees_something(word):
    found = audit.one_run(recipe(word), 512, quiet)
    assert found.holds, found
    assert 0.25 * found.claimed < found.lower, found
    assert found.runs == 512


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_one_run_catches_noise_of_half_the_size(monkeypatch, word):
    assert audit.one_run(recipe(word), 4096, quiet).holds
    discrete, normal = distributed.discrete_gaussian, noise.normals
    monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: discrete(max(1, s // 2), n, key))
    monkeypatch.setattr(noise, "normals", lambda key, n: normal(key, n) / 2.0)
    assert not audit.one_run(recipe(word), 4096, quiet).holds


def test_one_run_catches_missing_noise(monkeypatch):
    monkeypatch.setattr(noise, "normals", lambda key, n: np.zeros(n))
    for word in ("central", "local"):
        found = audit.one_run(recipe(word), 512, quiet)
        assert not found.holds, found
        assert found.guessed == bounds.Guessed(114, 114, pytest.approx(3.6, abs=0.1))


def test_a_broken_claim_fails_the_command(tmp_path, monkeypatch):
    """Exit status 8, with the figures on the disk and on the page; the mechanism's claim may well hold."""
    from edgewise.apps import leakage

    monkeypatch.setattr(audit, "mechanism", lambda *_: bounds.Finding("mechanism", 1.0, 0.9, 4.4, 3.9, 100, 0.95))
    broken = bounds.Finding("one run", 1.0, 1.5, 4.4, 7.0, 4096, 0.95, bounds.Guessed(320, 311, 3.125))
    monkeypatch.setattr(audit, "one_run", lambda *_: broken)
    leak = {"what": "x", "span": 0.5, "rows": None, "base": 0.1, "tokens": 3, "seen": True}
    memory = {"what": "x", "auc": 0.5, "tpr_at_1": 0.0, "exposure": 1.0, "exposure_most": 8.0}
    monkeypatch.setattr(leakage, "examine", lambda *_: {"leaks": [leak], "memory": [memory], "tokens": 3})
    with pytest.raises(AuditError) as caught:
        audit.examine(recipe("central"), tmp_path, tmp_path / "out", quick=True)
    assert caught.value.exit_status == 8
    assert "one run: mu 1 claimed, at least 1.5 measured" in str(caught.value)
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert [f["holds"] for f in found["findings"]] == [True, False]
    assert [f["guessed"] for f in found["findings"]] == [None, {"guesses": 320, "right": 311, "epsilon_plain": 3.125}]
    page = (tmp_path / "out" / "audit.html").read_text()
    assert "must not run" in page
    assert "4,096 canaries, 311 of 320 guesses right (3.12 without" in page
    screen = StringIO()
    audit.show(Console(file=screen, width=120), found)
    assert "311 of 320 guesses were right" in screen.getvalue()
    assert "BROKEN" in screen.getvalue()
