"""The real stages under 2^17 runs: too little noise, a clip that does not clip, too large a scale are found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewise.codecs.project.rotate import rotate
from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.keys import derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.merges.plain import plain_sum
from edgewise.merges.ring import ring_sum
from edgewise.privacy import audit, audit_findings, distributed
from edgewise.privacy.clip import clip
from edgewise.privacy.distributed import discrete_gaussian_noise
from edgewise.privacy.noise import noise
from edgewise.privacy.samplers import discrete_gaussian, round_within_norm

RUNS, N, DELTA = 2**17, 8, 1e-5
UPDATE = np.full(RUNS, 5.0, np.float32)  # five times the clip
KEY = root(3)
Patch = pytest.MonkeyPatch


def private(dim: int = RUNS, z: float = 1.0, corrupt: int = 0, bits: int = 18, broken: bool = False) -> Pipeline:
    """A clip of 1 for each coordinate, noise of z on it; ``broken``: the clip passes everything on."""
    first = clip(sqrt(dim))
    if broken:
        first = replace(first, encode=_pass)
    stages = [first, rotate(), discrete_gaussian_noise(z / sqrt(dim), bits), wrap()]
    return pipeline(Space(dim, Quorum(N, N, corrupt), population=N), stages, ring_sum())


def _pass(payload: Payload, memory: Memory, space: Space, turn: object) -> tuple[Payload, Memory]:
    return payload, memory


def examined(pipe: Pipeline, update: NDArray[np.float32] = UPDATE) -> audit_findings.AuditFinding:
    return audit.mechanism_audit("mechanism", pipe, update, DELTA, KEY)


def less_noise(by: float) -> Callable[[int, int, bytes], NDArray[np.int64]]:
    return lambda s, n, key: discrete_gaussian(round(s / by), n, key)


@pytest.mark.slow
def test_correct_code_holds_and_is_tight() -> None:
    found = examined(private())
    assert found.claimed == pytest.approx(1.0, abs=0.01)
    assert found.epsilon_claimed == pytest.approx(4.377, abs=0.05)
    assert 0.9 * found.claimed <= found.lower <= found.claimed
    assert found.holds
    assert (found.runs, found.confidence) == (RUNS, 0.95)


@pytest.mark.slow
def test_noise_that_some_leave_out_was_never_counted_on() -> None:
    """Two of eight devices add none: the other six carry the claim, with larger shares."""
    some, all_ = private(corrupt=2), private()
    assert some.encoded.noise.honest == 6
    assert some.encoded.noise.std == pytest.approx(sqrt(8 / 6) * all_.encoded.noise.std, rel=0.01)
    found = examined(some)
    assert 0.9 * found.claimed <= found.lower <= found.claimed == pytest.approx(1.0, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "mu"), [(sqrt(2), 1.39), (2.0, 1.98)])
def test_too_little_noise_is_found(monkeypatch: Patch, by: float, mu: float) -> None:
    monkeypatch.setattr(distributed, "discrete_gaussian", less_noise(by))
    found = examined(private())
    assert found.lower == pytest.approx(mu, abs=0.06)
    assert not found.holds
    assert found.epsilon_lower > found.epsilon_claimed


@pytest.mark.slow
def test_a_missing_clip_is_found(monkeypatch: Patch) -> None:
    """First by the rounding, whose bound it breaks; without that check too, by the audit."""
    with pytest.raises(ValueError, match="longer than its bound"):
        examined(private(broken=True))
    monkeypatch.setattr(distributed, "round_within_norm", lambda y, limit, key: round_within_norm(y, inf, key))
    found = examined(private(broken=True))
    assert found.lower == pytest.approx(4.9, abs=0.2)
    assert not found.holds


@pytest.mark.slow
def test_a_scale_that_only_the_signal_has_is_found(monkeypatch: Patch) -> None:
    monkeypatch.setattr(
        distributed, "round_within_norm", lambda y, limit, key: round_within_norm(y * sqrt(2), limit * sqrt(2), key)
    )
    found = examined(private())
    assert found.lower == pytest.approx(1.39, abs=0.06)
    assert not found.holds


@pytest.mark.slow
def test_shares_that_repeat_are_found(monkeypatch: Patch) -> None:
    """Every device with the same noise: the sum's is sqrt(8) too large, and the audit is no longer tight."""
    monkeypatch.setattr(distributed, "discrete_gaussian", lambda s, n, key: discrete_gaussian(s, n, KEY))
    found = examined(private(2**14), UPDATE[: 2**14])
    assert found.lower < 0.5 * found.claimed
    assert not found.tight


@pytest.mark.parametrize(("actual", "holds"), [(1.0, True), (0.5, False)])
def test_noise_of_the_server(monkeypatch: Patch, actual: float, holds: bool) -> None:
    dim = 2**15
    told, real = noise(1.0 / sqrt(dim)), noise(actual / sqrt(dim))
    post = replace(told, apply=real.apply)
    pipe = pipeline(Space(dim, Quorum(N, N)), [clip(sqrt(dim))], plain_sum(), [post])
    found = examined(pipe, UPDATE[:dim])
    assert found.claimed == pytest.approx(1.0, rel=2e-5)  # what is rounded is noised too
    assert found.holds is holds
    assert found.lower > 0.9 / actual


@pytest.mark.slow
def test_runs_in_coordinates_are_like_runs_one_by_one() -> None:
    """Sixteen coordinates and 600 whole releases of eight devices, against 2^17 coordinates of one release."""
    small = private(16, bits=18)
    one, none = np.zeros(16, np.float32), np.zeros(16, np.float32)
    one[0] = 20.0  # five times the clip of sqrt(16)
    worlds = [
        np.array([audit.audited_release(small, [x, *[none] * (N - 1)], derive(KEY, w, i)) for i in range(600)])
        for w, x in (("without", none), ("with", one))
    ]
    large = private()
    many = audit.audited_release(large, [UPDATE, *[np.zeros_like(UPDATE)] * (N - 1)], KEY)
    # One coordinate has all of the clip here and 1 / sqrt(d) of it there: the same noise of 1, signals of 4 and 1.
    assert worlds[0].mean() == pytest.approx(0.0, abs=0.05)
    assert worlds[1][:, 0].mean() == pytest.approx(4.0, abs=0.2)
    assert np.abs(worlds[1][:, 1:].mean(axis=0)).max() < 0.2
    assert many.mean() == pytest.approx(1.0, abs=0.02)
    for seen in (worlds[0].std(), worlds[1][:, 0].std(), many.std()):
        assert seen == pytest.approx(1.0, rel=0.09)
    found = audit_findings.mechanism_finding(
        "one by one", 4.0, DELTA, worlds[0][:, 0].astype(float), worlds[1][:, 0].astype(float)
    )
    assert 2.5 < found.lower <= 4.0 * 1.01


def test_updates_that_are_no_runs_are_refused() -> None:
    pipe = private(64)
    for wrong in (np.zeros(64), np.arange(64), np.ones(0)):
        with pytest.raises(ValueError, match="one magnitude"):
            audit.mechanism_audit("x", pipe, wrong.astype(np.float32), DELTA, KEY)
    bare = pipeline(Space(64, Quorum(N, N)), [clip(1.0)], plain_sum())
    with pytest.raises(ValueError, match="claims nothing"):
        audit.mechanism_audit("x", bare, np.ones(64, np.float32), DELTA, KEY)


@pytest.mark.slow
@pytest.mark.parametrize(("k", "n"), [(3, 100), (99, 100), (20_000, 98_304), (2_000_000, 2**24)])
def test_rates_are_clopper_pearson(k: int, n: int) -> None:
    from scipy.stats import beta

    assert audit_findings.upper_rate(k, n, 0.975) == pytest.approx(float(beta.ppf(0.975, k + 1, n - k)), rel=1e-6)
    assert audit_findings.upper_rate(n, n, 0.975) == 1.0
