"""Who may leave when: every pattern at small n gives the exact sum of the right devices, or the one named end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session import Session

from edgewise.core.keys import derive
from edgewise.crypto import agree
from edgewise.secagg import server
from edgewise.secagg.params import Params, Policy, complete_threshold

STAYS = 5


def outcome(pattern: Sequence[int], n_min: int = 2) -> None:
    """Device i leaves before it answers message ``pattern[i]``: 1 roster, 2 boxes, 3 survivors, 4 proofs; 5 never."""
    s = Session(len(pattern), n_min=n_min)
    leaves = dict(zip(s.devices, pattern, strict=True))
    end = s.play(lambda step, d: step >= leaves[d])
    shares, masked = (sum(p > step for p in pattern) for step in (1, 2))
    signed, revealed = (sum(p > step for p in pattern) for step in (3, 4))
    threshold = complete_threshold(len(pattern))
    if min(shares, masked) >= max(n_min, threshold) and min(signed, revealed) >= threshold:
        assert isinstance(end, server.Released)
        assert end.survivors == tuple(d for d in s.devices if leaves[d] > 2)
    else:
        assert isinstance(end, server.Aborted)
        assert end.code == "E-SECAGG-FEW"


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_pattern_at_small_n(n: int) -> None:
    for pattern in product(range(1, STAYS + 1), repeat=n):
        outcome(pattern)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 6])
def test_every_pattern_up_to_names_at_five_and_six(n: int) -> None:
    """How many leave when, in every combination; who they are is drawn."""
    rng = Random(n)
    for pattern in combinations_with_replacement(range(1, STAYS + 1), n):
        outcome(rng.sample(pattern, n))


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 6])
def test_every_pattern_at_five_and_six(n: int) -> None:
    for pattern in product(range(1, STAYS + 1), repeat=n):
        outcome(pattern)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 5, 5, 5, 5, 5]), min_size=6, max_size=10), st.integers(2, 10))
def test_larger_cohorts_with_a_minimum(pattern: list[int], n_min: int) -> None:
    outcome(pattern, n_min)


@pytest.mark.slow
def test_a_sparse_graph_with_drop_outs_at_every_step() -> None:
    """80 devices with fewer neighbours than everybody; against a server that lies, as the default is."""
    policy = Policy(0.05, 0.05)
    s = Session(80, n_min=40, policy=policy)
    k, t = policy.shape(80)
    assert t < k < 79
    leaves = {"d003": 1, "d017": 2, "d031": 2, "d044": 3, "d059": 4}
    end = s.play(lambda step, d: step >= leaves.get(d, STAYS))
    assert isinstance(end, server.Released)
    assert set(s.devices) - set(end.survivors) == {"d003", "d017", "d031"}


@pytest.mark.slow
def test_a_sparse_graph_below_its_minimum_is_a_named_end() -> None:
    s = Session(80, n_min=78, policy=Policy(0.05, 0.05))
    end = s.play(lambda step, d: step >= 2 and d in ("d001", "d002", "d003"))
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"


def test_a_sum_is_never_opened_below_the_threshold() -> None:
    for n in (3, 64, 80):
        policy = Policy(0.05, 0.05)
        assert Params(policy, 2, 20, 1, 0).needed(n) == policy.shape(n)[1]
        assert Params(policy, 75, 20, 1, 0).needed(n) == 75


def test_a_cohort_for_which_there_is_no_graph_is_a_named_end() -> None:
    """Such policies exist at the edge of what recipes may say; how many came is not known before."""
    s = Session(67, policy=Policy(0.33, 0.33))
    for device, raw in s.advertise():
        s.give(device, raw)
    s.close()
    assert isinstance(s.server, server.Aborted)
    assert s.server.code == "E-SECAGG-FEW"


def test_usable_keys_are_those_that_agree_takes() -> None:
    small = (bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"), bytes(31), b"")
    assert not any(agree.usable(key) for key in small)
    assert agree.usable(agree.public(derive(bytes(32), "any")))
