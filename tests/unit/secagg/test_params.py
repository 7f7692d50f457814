"""The graph finder against the conditions that it promises, and the graph itself."""

from __future__ import annotations

import math

import msgspec
import pytest
from cost import calls
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import derive, root
from edgewise.core.space import share_of
from edgewise.secagg import graph, messages, params
from edgewise.secagg.merge import smallest_masked_sum
from edgewise.secagg.params import (
    COMPLETE_MOST,
    COMPLETE_TO,
    Params,
    Server,
    TrustPolicy,
    choose_graph_degree,
    complete_threshold,
)

POLICIES = [
    (corrupt, dropout, server)
    for corrupt, dropout in ((0.0, 0.0), (0.0, 0.2), (0.02, 0.02), (0.05, 0.05), (0.1, 0.1), (0.1, 0.3), (0.2, 0.1))
    for server in ("malicious", "curious")
]
SIZES = (65, 66, 80, 113, 125, 200, 256, 257, 300, 1000, 5000)


def promised(n: int, k: int, t: int, corrupt: int, dropped: int, server: str) -> bool:
    """The conditions of the sparse graph, by another library's distribution."""
    sigma = 80 if server == "malicious" else 40
    others, good, limit = n - 1, n - 1 - corrupt - dropped, -(sigma + 2) * math.log(2) - math.log(n)

    def rare(most: int, drawn: int, limit: float) -> bool:  # more corrupt than that among so many
        return hypergeom.logsf(most, others, corrupt, drawn) <= limit

    # Two secrets of a device take a holder of each list twice, or a corrupt one: 2 (t - c) <= k - c.
    safe = rare(2 * t - k - 1, k, limit) if server == "malicious" else rare(t - 1, k, limit)
    if server == "malicious":  # a device at the end of a gap: k/2 holders, and the corrupt ones on the other side
        safe = safe and rare(t - k // 2 - 1, k // 2, limit - math.log(2))
    return safe and hypergeom.logcdf(t - 1, others, good, k) <= -20 * math.log(2) - math.log(n)


@pytest.mark.quick(sample=4)
@pytest.mark.parametrize(("corrupt", "dropout", "server"), POLICIES)
def test_sparse_graphs_are_safe_and_alive_and_no_smaller_one_is(corrupt: float, dropout: float, server: Server) -> None:
    found = 0
    for n in SIZES:
        bad, dropped = share_of(corrupt, n), share_of(dropout, n)
        shape = choose_graph_degree(n, bad, dropped, server)
        if shape is None:
            continue
        found += 1
        k, t = shape
        assert promised(n, k, t, bad, dropped, server)
        assert t == 2 or not promised(n, k, t - 1, bad, dropped, server)
        if k > bad + dropped + 2:  # where being connected does not decide
            assert not any(promised(n, k - 2, less, bad, dropped, server) for less in range(max(2, t - 4), t + 1))
    assert found >= 2


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("server", ["malicious", "curious"])
def test_corrupt_devices_and_drop_outs_at_once_leave_enough_holders(server: Server) -> None:
    """In every session up to the largest complete graph, or there is none of that policy."""
    for corrupt, dropout in ((0.33, 0.0), (0.3, 0.04), (0.25, 0.1), (0.1, 0.33), (0.2, 0.2), (1 / 9, 0.33)):
        for n in range(2, COMPLETE_MOST + 1):
            bad, dropped = share_of(corrupt, n), share_of(dropout, n)
            policy = TrustPolicy(corrupt, dropout, server)
            if n <= 3 * bad + 2 * dropped and (n <= COMPLETE_TO or not choose_graph_degree(n, bad, dropped, server)):
                with pytest.raises(CompositionError, match="E-NMIN"):
                    policy.shape(n)
                continue
            k, t = policy.shape(n)
            assert k == n - 1 or n > COMPLETE_TO
            if k == n - 1:
                assert t <= n - bad - dropped
                assert 2 * t > n + bad


@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.1, 0.25, 0.32])
def test_the_smallest_sum_of_masks_lets_larger_ones_be(dropout: float) -> None:
    """Of any number of devices from there on; one device fewer is refused at some number, or a third is corrupt."""
    for corrupt in range(12):
        least = smallest_masked_sum(corrupt, dropout)
        for n in range(least, COMPLETE_TO + 1):
            assert n > 3 * share_of(corrupt / least, n) + 2 * share_of(dropout, n)
        assert least > 3 * corrupt + 2 * share_of(dropout, least)
    assert [smallest_masked_sum(5, dropout) for dropout in (0.0, 0.1, 0.25)] == [16, 20, 32]


def test_a_share_that_binary_fractions_round_down_is_counted_whole() -> None:
    """0.29 of 200 devices are 58, not 57, as for the next larger share."""
    assert TrustPolicy(0.29, 0.05).shape(200) == TrustPolicy(0.2901, 0.05).shape(200) == (199, 130)


def test_what_cannot_be_promised_is_refused_with_what_can() -> None:
    for n, corrupt in ((16, 0.32), (300, 0.25), (5000, 0.33)):
        policy = TrustPolicy(corrupt, 0.1)
        with pytest.raises(CompositionError) as caught:
            policy.shape(n)
        bad, said = share_of(corrupt, n), str(caught.value)
        assert caught.value.code == "E-NMIN"
        assert f"{bad} may be corrupt and {share_of(0.1, n)} more drop out" in said
        enough = int(said.partition("devices take ")[2].partition(" ")[0])
        assert TrustPolicy(bad / enough, 0.1).shape(enough)


@pytest.mark.parametrize("n", [200, 5000, 80_000])
@pytest.mark.parametrize("shares", [(0.33, 0.33), (0.33, 0.0), (0.2, 0.15), (0.02, 0.02)])
def test_the_search_looks_at_a_few_graphs_whatever_the_policy(
    n: int, shares: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    real = params.fitting_threshold
    monkeypatch.setattr(params, "fitting_threshold", lambda n, k, *rest: looked.append(k) or real(n, k, *rest))
    bad, dropped = (share_of(share, n) for share in shares)
    assert calls(lambda: choose_graph_degree.__wrapped__(n, bad, dropped, "malicious")) <= 160 * math.log2(n)
    assert len(looked) <= math.log2(n) + 1


def test_complete_graph_rule() -> None:
    for n in range(2, COMPLETE_TO + 1):
        for corrupt in (0.0, 0.1, 0.3):
            k, t = TrustPolicy(corrupt, 0.0).shape(n)
            assert (k, t) == (n - 1, complete_threshold(n, bad := share_of(corrupt, n)))
            assert 2 * t > n + bad >= 2 * (t - 1)
    assert TrustPolicy().shape(COMPLETE_TO + 1)[0] < COMPLETE_TO


def test_policies_have_bounds() -> None:
    for wrong in ({"corrupt": 0.4}, {"dropout": -0.1}):
        with pytest.raises(RecipeError):
            TrustPolicy(**wrong)
    assert Params(TrustPolicy(), 2, 20, 1, 0).needed(9) == 5
    assert Params(TrustPolicy(), 8, 20, 1, 0).needed(9) == 8


@given(st.integers(5, 80), st.integers(1, 6), st.integers(0, 9))
def test_the_graph_is_regular_and_symmetric(n: int, half: int, which: int) -> None:
    devices = [f"d{i:02d}" for i in range(n)]
    k = min(2 * half, n - 1)
    near = graph.mask_neighbours(derive(root(0), which), devices, k)
    for d, others in near.items():
        assert len(others) == len(set(others)) == k
        assert list(others) == sorted(others)
        assert d not in others
        assert all(d in near[v] for v in others)


def test_the_graph_depends_on_every_key() -> None:
    word = [bytes([i]) * 32 for i in range(5)]
    keys = {f"d{i}": messages.SessionKeys(seal=w, mask=w, commitment=w, signature=w + w) for i, w in enumerate(word)}
    seen = {messages.roster_digest(b"s", keys), messages.roster_digest(b"t", keys)}
    for field, value in (("seal", word[0]), ("mask", word[0]), ("commitment", word[0]), ("signature", word[0] * 2)):
        seen.add(messages.roster_digest(b"s", keys | {"d4": msgspec.structs.replace(keys["d4"], **{field: value})}))
    seen.add(messages.roster_digest(b"s", {"d9" if d == "d4" else d: k for d, k in keys.items()}))
    assert len(seen) == 7


def test_a_session_of_nobody_ends_at_once() -> None:
    """The refusal looks for a number of devices that would do, and starts from nobody."""
    for server in ("malicious", "curious"):
        with pytest.raises(CompositionError, match=r"take \d or more"):
            TrustPolicy(0.1, 0.1, server).shape(0)
