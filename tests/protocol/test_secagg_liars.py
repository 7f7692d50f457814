"""Devices that deal or reveal wrong shares: they are named, nobody else is, and the sum comes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from liars import DEALS, REVEALS, Lies
from long import examples
from session import IDENTITIES, Session

from edgewise.secagg import server
from edgewise.secagg.params import Policy

D = list(IDENTITIES)
DEALT, TOLD = "E-SHARE", "E-SECAGG-REVEAL"


def play(n: int, lies: dict[int, str], **session: object) -> tuple[server.State, dict[str, str]]:
    s = Session(n, **session)  # type: ignore[arg-type]
    end = Lies(s, {D[i]: lie for i, lie in lies.items()}).play()
    assert len(s.refused) == len(dict(s.refused))  # everybody once
    return end, dict(s.refused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "liars"), [(12, (0,)), (12, (0, 6)), (32, (0, 16)), (16, (1, 4, 8, 12, 15)), (7, (0, 3))]
)
def test_holders_that_reveal_wrong_shares_are_named_and_the_sum_comes(n: int, liars: tuple[int, ...]) -> None:
    """Wherever they stand in the order, up to n - t of them; also where shares are needed, since a device vanished."""
    for vanished in ({}, {n - 2: "@4"} if len(liars) < n - (2 * n // 3 + 1) else {}):
        end, named = play(n, dict.fromkeys(liars, "wrong") | vanished)
        assert isinstance(end, server.Released)
        assert len(end.survivors) == n
        assert named == {D[i]: TOLD for i in liars}


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, 32])
@pytest.mark.parametrize("lie", ["seed", "boxes", "checks"])
def test_a_device_that_deals_wrong_shares_is_named_and_the_sum_comes(n: int, lie: str) -> None:
    end, named = play(n, {1: lie})
    assert isinstance(end, server.Released)
    assert len(end.survivors) == n
    assert named == {D[1]: DEALT}


@pytest.mark.parametrize(("lie", "code"), [("seed@4", DEALT), ("key@2", DEALT), ("boxes@4", DEALT)])
def test_a_device_that_deals_wrong_shares_and_vanishes_ends_the_session_and_is_named(lie: str, code: str) -> None:
    """Its mask cannot be taken off: nobody can know before the masked updates are there."""
    end, named = play(9, {1: lie})
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"
    assert D[1] in end.why
    assert named == {D[1]: code}


def test_two_devices_at_odds_are_not_named() -> None:
    """A box that does not open: its dealer lies or its holder does, and nobody can tell. It costs one share."""
    assert play(9, {1: "one"})[1] == {}
    end, named = play(12, {1: "one@4", 5: "wrong"})
    assert isinstance(end, server.Released)
    assert named == {D[5]: TOLD}


def test_a_device_that_says_of_many_that_their_boxes_do_not_open_is_named() -> None:
    end, named = play(9, {1: "nothing"})
    assert isinstance(end, server.Released)
    assert named == {D[1]: TOLD}


def test_a_device_that_reveals_another_seed_is_named_and_its_own_is_found() -> None:
    end, named = play(9, {1: "own"})
    assert isinstance(end, server.Released)
    assert named == {D[1]: TOLD}


def test_too_many_liars_are_a_named_end() -> None:
    """Where a device vanished and fewer than t others reveal the truth of it."""
    end, named = play(7, {0: "wrong", 3: "wrong", 6: "@4"})  # t = 5 of 7
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"
    assert named == {D[0]: TOLD, D[3]: TOLD}


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(60), deadline=None)
@given(st.integers(4, 12), st.data())
@example(9, None)
def test_no_honest_device_is_ever_named(n: int, data: st.DataObject | None) -> None:
    """Of fewer than a third, whatever they do; and if they stay, there is a sum, with everybody in it."""
    lies, most = {0: "seed@4", 4: "wrong"}, max(0, -(-n // 3) - 1)
    if data is not None:
        who = data.draw(st.lists(st.integers(0, n - 1), max_size=most, unique=True))
        kinds = st.sampled_from([*DEALS, *REVEALS])
        lies = {i: data.draw(kinds) + data.draw(st.sampled_from(["", "", "@2", "@3", "@4"])) for i in who}
    end, named = play(n, lies, policy=Policy(0.33, 0.1))
    assert set(named) <= {D[i] for i in lies}
    if all("@" not in lie for lie in lies.values()):
        assert isinstance(end, server.Released)
        assert len(end.survivors) == n
        assert {D[i] for i, lie in lies.items() if lie in ("wrong", "own", "half")} <= set(named)


@pytest.mark.slow
def test_liars_in_a_sparse_graph() -> None:
    """Each has a few neighbours; some of them lie, one device deals wrong shares, and one vanishes."""
    policy = Policy(0.05, 0.05)
    end, named = play(80, {3: "wrong", 40: "half", 77: "wrong", 10: "seed", 20: "boxes", 30: "@4"}, policy=policy)
    assert isinstance(end, server.Released)
    assert named == {D[3]: TOLD, D[40]: TOLD, D[77]: TOLD, D[10]: DEALT, D[20]: DEALT}
