"""Each privacy rule refuses what it is about with its code and a fix, and nothing that is sound."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan, sqrt

import pytest

from edgewise.core.errors import REGISTRY, CompositionError
from edgewise.privacy import rules
from edgewise.privacy.accountant import epsilon
from edgewise.privacy.spend import fixed_size, gaussian, poisson, record_level, truncated

P, T, F = poisson(1.0, 0.1), truncated(1.0, 0.1, 100, 30), fixed_size(1.0, 100, 10)

REFUSED: list[tuple[str, str, Callable[[], object]]] = [
    ("E-NORM-AFTER", "before clip", lambda: rules.norm_after("sketch", 1.0, 1.0001)),
    ("E-NORM-AFTER", "before clip", lambda: rules.norm_after("random_k", 1.0, inf)),
    ("E-NORM-AFTER", "before clip", lambda: rules.norm_after("random_k", 1.0, nan)),
    ("E-PERTENSOR", "account with 5", lambda: rules.per_tensor([3.0, 4.0], 4.0)),
    ("E-PERTENSOR", "clip every tensor", lambda: rules.per_tensor([3.0, inf], inf)),
    ("E-PERTENSOR", "clip every tensor", lambda: rules.per_tensor([3.0, nan], 9.0)),
    ("E-AMP-VISIBLE", "readers of the models only", lambda: rules.amplification(P, "poisson", True)),
    ("E-AMP-VISIBLE", "readers of the models only", lambda: rules.amplification(F, "fixed", True)),
    ("E-AMP-VISIBLE", "account for fixed", lambda: rules.amplification(P, "fixed", False)),
    ("E-AMP-VISIBLE", "account for available", lambda: rules.amplification(P, "available", False)),
    ("E-AMP-VISIBLE", "account for poisson", lambda: rules.amplification(T, "poisson", False)),
    ("E-AMP-VISIBLE", "without sampling", lambda: epsilon({P: 1}, 1e-5, against="server")),
    ("E-ADJ-MIX", "account for zero_out", lambda: rules.neighbours("zero_out", "add_remove")),
    ("E-ADJ-MIX", "same neighbours", lambda: epsilon({P: 1, F: 1}, 1e-5)),
    ("E-ADJ-MIX", "same neighbours", lambda: epsilon({P: 1, record_level(1.0, 0.1, 1): 1}, 1e-5)),
    ("E-EF-RECORD", "protect whole devices", lambda: rules.feedback_of_records(True, "record")),
    ("E-MF-LOCAL", "independent noise", lambda: rules.correlated_noise("devices")),
    ("E-MF-LOCAL", "independent noise", lambda: rules.correlated_noise("device")),
    ("E-MF-GAP", "in turns", lambda: rules.participation_gap(10, True, False)),
    ("E-MF-GAP", "in turns", lambda: rules.participation_gap(10, False, True)),
    ("E-MF-GAP", "in turns", lambda: rules.participation_gap(0, True, True)),
    ("E-DIV-N", "expected number", lambda: rules.divisor("count", "add_remove")),
    ("E-DIV-N", "expected number", lambda: rules.divisor("count", "replace_one")),
    ("E-WEIGHT", "leave out weigh", lambda: rules.divisor("weights", "zero_out")),
    ("E-NMIN", "raise round.minimum", lambda: rules.enough(9, 10)),
    ("E-NMIN", "disjoint groups", lambda: rules.one_sum(2, False)),
    ("E-ROBUST-SECAGG", "visible updates", lambda: rules.robust("krum", True)),
    ("E-STATS", 'metrics = "none"', lambda: rules.metrics(["loss"], True)),
    ("E-BN", "group normalisation", lambda: rules.separate_records({"a": "BatchNorm2d"}, "record")),
    ("E-BN", "group normalisation", lambda: rules.separate_records({"a": "SyncBatchNorm"}, "record")),
]


@pytest.mark.parametrize(("code", "fix", "make"), REFUSED)
def test_refused(code: str, fix: str, make: Callable[[], object]) -> None:
    with pytest.raises(CompositionError) as caught:
        make()
    assert caught.value.code == code
    assert fix in caught.value.fix
    assert caught.value.exit_status == 2


def test_sound_settings_pass() -> None:
    rules.norm_after("rotate", 1.0, 1.0)
    rules.norm_after("quantize", 1.003, 1.0029)
    assert rules.per_tensor([3.0, 4.0], 5.0) == 5.0
    assert rules.per_tensor([1.0] * 7, 3.0) == pytest.approx(sqrt(7))
    rules.amplification(P, "poisson", False)
    rules.amplification(F, "fixed", False)
    rules.amplification(gaussian(1.0), "available", True)
    rules.amplification(record_level(1.0, 0.1, 3), "poisson", True)  # nobody sees which records a device draws
    rules.neighbours("zero_out", "zero_out")
    rules.feedback_of_records(True, "device")
    rules.feedback_of_records(False, "record")
    rules.correlated_noise("server")
    rules.participation_gap(10, True, True)
    rules.participation_gap(1, False, False)
    rules.divisor("count", "zero_out")
    rules.divisor("expected", "add_remove")
    rules.enough(10, 10)
    rules.one_sum(1, False)
    rules.one_sum(8, True)
    rules.robust("median", False)
    rules.metrics([], True)
    rules.metrics(["loss"], False)
    rules.separate_records({"a": "LayerNorm", "b": "GroupNorm"}, "record")
    rules.separate_records({"a": "BatchNorm1d"}, "device")


def test_every_refusal_of_the_design_has_a_code() -> None:
    named = """E-TOPK-SECAGG E-NOISE-NOCLIP E-PERTENSOR E-NORM-AFTER E-WEIGHT E-AMP-VISIBLE E-ADJ-MIX E-EF-RECORD
    E-MF-LOCAL E-DIV-N E-WRAP E-NMIN E-ROBUST-SECAGG E-STATS E-BN E-NAN""".split()
    assert len(named) == 16
    assert set(named) <= REGISTRY.keys()
