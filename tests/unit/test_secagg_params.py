"""The graph finder against its published table, and the graph itself."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.keys import derive, root
from edgewise.secagg import graph, messages
from edgewise.secagg.params import COMPLETE_TO, Params, Policy, choose, complete_threshold

# (corrupt, dropping out, server), from the C++ reference's own rule with eta = 20.
COLUMNS = [(0.1, 0.1, "curious"), (0.2, 0.2, "curious"), (0.33, 0.1, "curious"), (0.1, 0.1, "malicious"),
           (0.2, 0.1, "malicious")]  # fmt: skip
TABLE = {
    (100, 40): [(22, 11), (40, 21), (42, 32), (32, 22), (42, 32)],
    (200, 40): [(34, 19), (62, 34), (66, 47), (56, 39), (76, 57)],
    (1000, 40): [(48, 27), (98, 54), (102, 72), (96, 67), (140, 104)],
    (10000, 40): [(54, 31), (122, 67), (126, 88), (122, 85), (184, 136)],
    (1000, 80): [(64, 41), (136, 81), (144, 107), (120, 87), (178, 136)],
    (10000, 80): [(76, 48), (170, 100), (182, 134), (156, 113), (242, 184)],
}


@pytest.mark.parametrize(("n", "sigma"), TABLE)
def test_the_finder_gives_the_table(n: int, sigma: int) -> None:
    assert [choose(n, gamma, delta, sigma, server) for gamma, delta, server in COLUMNS] == TABLE[n, sigma]  # type: ignore[arg-type]


def test_a_share_that_binary_fractions_round_down_is_counted_whole() -> None:
    """0.29 of 200 devices are 58, not 57, as for the next larger share."""
    assert choose(200, 0.29, 0.05, 80, "malicious") == choose(200, 0.2901, 0.05, 80, "malicious") == (76, 66)


@pytest.mark.slow
def test_small_cohorts_have_no_sparse_graph() -> None:
    with pytest.raises(CompositionError) as caught:
        choose(49, 0.05, 0.05, 40, "curious")
    assert caught.value.code == "E-NMIN"
    with pytest.raises(CompositionError):
        choose(1000, 0.45, 0.45, 80, "malicious")


def test_complete_graph_rule() -> None:
    for n in range(2, COMPLETE_TO + 1):
        k, t = Policy().shape(n)
        assert (k, t) == (n - 1, complete_threshold(n))
        corrupt = (n - 1) // 3  # fewer than a third
        assert 2 * t > n + corrupt
    assert Policy().shape(COMPLETE_TO + 1)[0] < COMPLETE_TO


def test_policies_have_bounds() -> None:
    for wrong in ({"corrupt": 0.4}, {"dropout": -0.1}):
        with pytest.raises(RecipeError):
            Policy(**wrong)
    assert Params(Policy(), 2, 20, 1, 0).needed(9) == 7
    assert Params(Policy(), 8, 20, 1, 0).needed(9) == 8


@given(st.integers(5, 80), st.integers(1, 6), st.integers(0, 9))
def test_the_graph_is_regular_and_symmetric(n: int, half: int, which: int) -> None:
    devices = [f"d{i:02d}" for i in range(n)]
    k = min(2 * half, n - 1)
    near = graph.neighbours(derive(root(0), which), devices, k)
    for d, others in near.items():
        assert len(others) == len(set(others)) == k
        assert list(others) == sorted(others)
        assert d not in others
        assert all(d in near[v] for v in others)


def test_the_graph_depends_on_every_key() -> None:
    word = [bytes([i]) * 32 for i in range(5)]
    keys = {f"d{i}": messages.Keys(seal=w, mask=w, commitment=w, signature=w + w) for i, w in enumerate(word)}
    seen = {messages.roster_digest(b"s", keys), messages.roster_digest(b"t", keys)}
    for field, value in (("seal", word[0]), ("mask", word[0]), ("commitment", word[0]), ("signature", word[0] * 2)):
        seen.add(messages.roster_digest(b"s", keys | {"d4": msgspec.structs.replace(keys["d4"], **{field: value})}))
    seen.add(messages.roster_digest(b"s", {"d9" if d == "d4" else d: k for d, k in keys.items()}))
    assert len(seen) == 7
