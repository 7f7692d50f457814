"""Drop-outs: every pattern at small n gives the exact sum of the right devices, or the one named end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples
from session import Session

from edgewise.core.keys import derive
from edgewise.core.space import share_of
from edgewise.crypto import agree
from edgewise.secagg import server
from edgewise.secagg.params import Params, TrustPolicy, complete_threshold

STAYS = 5


def expect(end: server.State, leaves: Mapping[str, int], n_min: int = 2) -> None:
    """Device d leaves before it answers message ``leaves[d]``: 1 roster, 2 boxes, 3 survivors, 4 proofs; 5: never."""
    pattern = leaves.values()
    shares, masked = (sum(p > step for p in pattern) for step in (1, 2))
    signed, revealed = (sum(p > step for p in pattern) for step in (3, 4))
    threshold = complete_threshold(n := len(pattern), share_of(TrustPolicy().corrupt, n))
    if min(shares, masked) >= max(n_min, threshold) and min(signed, revealed) >= threshold:
        assert isinstance(end, server.Released)
        assert end.survivors == tuple(d for d in leaves if leaves[d] > 2)
    else:
        assert isinstance(end, server.Aborted)
        assert end.code == "E-SECAGG-FEW"


def branches(s: Session, mail: Sequence[tuple[str, bytes]], leaves: dict[str, int], number: int = 1) -> int:
    """Every way in which the holders of ``mail`` answer message ``number`` or leave, to every end; how many ends.

    Sessions can be copied, so patterns that agree up to a message share the work up to it.
    """
    if s.over:
        s.check()
        expect(s.server, leaves)
        return 1
    answers = [(d, s.answer(d, raw)) for d, raw in mail]
    ends = 0
    for stay in product((True, False), repeat=len(answers)):
        after, letters = s.copy(), []
        gone = {d: number for (d, _), here in zip(answers, stay, strict=True) if not here}
        for device, raw in answers:
            letters += after.give(device, raw) if device not in gone else []
        if not letters and not after.over:
            letters = after.close()
        ends += branches(after, letters, leaves | gone, number + 1)
    return ends


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_every_pattern_at_small_n(n: int) -> None:
    s = Session(n)
    for device, raw in s.advertise():
        s.give(device, raw)
    assert branches(s, s.close(), dict.fromkeys(s.devices, STAYS)) > 2**n


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(40), deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, 5, 5, 5, 5, 5]), min_size=6, max_size=10), st.integers(2, 10))
def test_larger_cohorts_with_a_minimum(pattern: list[int], n_min: int) -> None:
    s = Session(len(pattern), n_min=n_min)
    leaves = dict(zip(s.devices, pattern, strict=True))
    expect(s.play(lambda step, d: step >= leaves[d]), leaves, n_min)


@pytest.mark.slow
def test_a_sparse_graph_with_drop_outs_at_every_step() -> None:
    """80 devices in a sparse graph, against a server that lies, which is the default policy."""
    policy = TrustPolicy(0.05, 0.05)
    s = Session(80, n_min=40, policy=policy)
    k, t = policy.shape(80)
    assert t < k < 79
    leaves = {"d003": 1, "d017": 2, "d031": 2, "d044": 3, "d059": 4}
    end = s.play(lambda step, d: step >= leaves.get(d, STAYS))
    assert isinstance(end, server.Released)
    assert set(s.devices) - set(end.survivors) == {"d003", "d017", "d031"}


@pytest.mark.slow
def test_a_sparse_graph_below_its_minimum_is_a_named_end() -> None:
    s = Session(80, n_min=78, policy=TrustPolicy(0.05, 0.05))
    end = s.play(lambda step, d: step >= 2 and d in ("d001", "d002", "d003"))
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"


def test_a_sum_is_never_opened_below_the_threshold() -> None:
    for n in (3, 64, 80):
        policy = TrustPolicy(0.05, 0.05)
        assert Params(policy, 2, 20, 1, 0).needed(n) == max(policy.shape(n)[1], policy.quorum(n)) > n / 2
        assert Params(TrustPolicy(0.05, 0.05, "curious"), 2, 20, 1, 0).needed(80) < 40
        assert Params(policy, 75, 20, 1, 0).needed(n) == 75


def test_a_cohort_for_which_there_is_no_graph_is_a_named_end() -> None:
    """Some policies of recipes have no graph for some numbers of devices, and the number is not known before."""
    s = Session(67, policy=TrustPolicy(0.33, 0.33))
    for device, raw in s.advertise():
        s.give(device, raw)
    s.close()
    assert isinstance(s.server, server.Aborted)
    assert s.server.code == "E-SECAGG-FEW"


def test_usable_keys_are_those_that_agree_takes() -> None:
    small = (bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little"), bytes(31), b"")
    assert not any(agree.usable_public_key(key) for key in small)
    assert agree.usable_public_key(agree.public_half(derive(bytes(32), "any")))
