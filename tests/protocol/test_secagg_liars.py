"""Devices that deal or reveal wrong shares are named, no other device is, and the sum opens."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from liars import DEALS, REVEALS, Lies
from long import examples
from session import IDENTITIES, Session

from edgewise.core.space import share_of
from edgewise.secagg import server
from edgewise.secagg.params import TrustPolicy

D = list(IDENTITIES)
DEALT, TOLD = "E-SHARE", "E-SECAGG-REVEAL"


def play(
    n: int, lies: dict[int, str], told: list[int] | None = None, **session: object
) -> tuple[server.State, dict[str, str]]:
    """Play a session. Returns its end and the reports. ``told`` collects the numbers of messages sent to devices."""
    s = Session(n, **session)  # type: ignore[arg-type]
    lying = Lies(s, {D[i]: lie for i, lie in lies.items()})
    end = lying.play()
    if told is not None:
        told += range(1, lying.number + 1)
    # Each device is reported once, unless it accused too many and then revealed something wrong.
    assert len(set(s.refused)) == len(s.refused)
    return end, dict(s.refused)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "liars"), [(12, (0,)), (12, (0, 6)), (32, (0, 16)), (16, (1, 4, 8, 12, 15)), (7, (0, 3))]
)
def test_holders_that_reveal_wrong_shares_are_named_and_the_sum_comes(n: int, liars: tuple[int, ...]) -> None:
    """Up to n - t liars at any place in the order are named, also where a vanished device makes shares necessary."""
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
    """The vanished dealer's mask cannot be removed. Nobody can know this before the masked updates have arrived."""
    end, named = play(9, {1: lie})
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"
    assert D[1] in end.why
    assert named == {D[1]: code}


@pytest.mark.slow
def test_two_devices_at_odds_are_not_named() -> None:
    """When a box does not open, its dealer or its holder lies, and nobody can tell which. It costs one share."""
    assert play(9, {1: "one"})[1] == {}
    end, named = play(12, {1: "one@4", 5: "wrong"})
    assert isinstance(end, server.Released)
    assert named == {D[5]: TOLD}


def test_a_device_that_keeps_the_shares_of_all_back_is_named() -> None:
    end, named = play(9, {1: "nothing"})
    assert isinstance(end, server.Released)
    assert named == {D[1]: TOLD}


def test_a_device_that_reveals_another_seed_is_named_and_its_own_is_found() -> None:
    end, named = play(9, {1: "own"})
    assert isinstance(end, server.Released)
    assert named == {D[1]: TOLD}


def test_too_many_liars_are_a_named_end() -> None:
    """The session ends where a device vanished and fewer than t others reveal true shares of it."""
    end, named = play(7, {0: "wrong", 3: "wrong", 5: "wrong", 6: "@4"})  # t = 4 of 7
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"
    assert named == {D[0]: TOLD, D[3]: TOLD, D[5]: TOLD}


TIGHT = {  # n -> policy under which the shares of n devices are just enough
    9: TrustPolicy(0.12, 0.23),  # 1 corrupt, 2 drop out, t = 6
    10: TrustPolicy(0.3, 0.0),  # 3 corrupt, t = 7
    12: TrustPolicy(0.25, 0.09),  # 3 corrupt, 1 drops out, t = 8
    14: TrustPolicy(0.15, 0.25),  # 2 corrupt, 3 drop out, t = 9
    20: TrustPolicy(0.25, 0.1),  # 5 corrupt, 2 drop out, t = 13
}


def counts(n: int) -> tuple[int, int]:
    return share_of(TIGHT[n].corrupt, n), share_of(TIGHT[n].dropout, n)


@pytest.mark.parametrize("n", TIGHT)
def test_the_tight_policies_are(n: int) -> None:
    corrupt, dropped = counts(n)
    assert TIGHT[n].shape(n)[1] in (n - corrupt - dropped, n - corrupt - dropped - 1)


@pytest.mark.slow
@pytest.mark.long(sample=2)
@pytest.mark.parametrize("n", TIGHT)
@pytest.mark.parametrize("leaves", ["@1", "@2", "@3", "@4"])
def test_junk_and_drop_outs_at_once_leave_enough_shares(n: int, leaves: str) -> None:
    """All corrupt devices deal boxes that do not open, or accuse every device that they can, and others drop out. No
    honest device ends its session for want of boxes, none is reported, and the sum opens."""
    corrupt, dropped = counts(n)
    for lie in ("boxes", "checks", "accuse one", "nothing", "wrong"):
        gone = dict.fromkeys(range(corrupt, corrupt + dropped), leaves)
        end, named = play(n, dict.fromkeys(range(corrupt), lie) | gone, policy=TIGHT[n])
        assert isinstance(end, server.Released)
        assert set(D[corrupt + dropped : n]) <= set(end.survivors)
        assert set(named) <= set(D[:corrupt])


@pytest.mark.parametrize(("lie", "gone"), [("one@2", (4, 8, 12)), ("two@2", (4, 8))])
def test_a_dealer_of_junk_to_as_many_as_may_lie_ends_nothing_by_itself(lie: str, gone: tuple[int, ...]) -> None:
    """Two of 14 may lie, so nobody can tell whether two accusations are true. Still 14 - 5 = t holders remain."""
    end, named = play(14, {0: lie} | dict.fromkeys(gone, "@2"), policy=TIGHT[14])
    assert isinstance(end, server.Released)
    assert not named


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("leaves", ["@2", "@4"])
@pytest.mark.parametrize("helps", [False, True])
def test_junk_to_few_that_ends_a_session_is_suspect(leaves: str, helps: bool) -> None:
    """The dealer vanishes, three others drop out, and perhaps another corrupt device goes with them. Of an honest
    dealer enough shares would be left."""
    gone = dict.fromkeys((4, 8, 12, 13) if helps else (4, 8, 12), leaves)
    told: list[int] = []
    end, named = play(14, {0: f"two{leaves}"} | gone, policy=TIGHT[14], told=told)
    assert isinstance(end, server.Aborted)
    assert end.code == "E-SECAGG-FEW"
    assert named == {D[0]: "E-SECAGG-ODDS"}
    assert len(told) == int(leaves[1])  # The server asks no device for shares where the dealer vanished before.


@pytest.mark.slow
def test_junk_to_more_than_may_lie_is_named_before_anything_is_revealed() -> None:
    for leaves, told in (("@2", 2), ("@4", 4)):
        numbers: list[int] = []
        end, named = play(14, {0: f"five{leaves}", 4: leaves, 8: leaves}, policy=TIGHT[14], told=numbers)
        assert isinstance(end, server.Aborted)
        assert named == {D[0]: DEALT}
        assert len(numbers) == told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "most"), [(TrustPolicy(0.0, 0.0), 1), (TrustPolicy(0.1, 0.0), 1), (TrustPolicy(0.2, 0.0), 2)]
)
def test_as_many_as_may_lie_name_nobody_and_one_more_do(policy: TrustPolicy, most: int) -> None:
    """A device is not named by one accusation, as a dealer or as a holder, whatever the policy says."""
    words = {1: "one", 2: "two", 3: "three"}
    for lie, code in (("{}", DEALT), ("accuse {}", TOLD)):
        for count in (most, most + 1):
            end, named = play(10, {4: lie.format(words[count])}, policy=policy)
            assert isinstance(end, server.Released)
            assert named == ({D[4]: code} if count > most else {})


@pytest.mark.slow
def test_a_share_that_a_holder_has_and_does_not_reveal_is_its_lie() -> None:
    """The holder is named, because it accused nobody when it could."""
    for lie, expected in (("without one", {D[2]: TOLD}), ("accuse one", {}), ("accuse one+without one", {D[2]: TOLD})):
        end, named = play(10, {2: lie}, policy=TrustPolicy(0.2, 0.0))
        assert isinstance(end, server.Released)
        assert named == expected


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=examples(60), deadline=None)
@given(st.sampled_from(list(TIGHT)), st.data())
@example(9, None)
def test_within_the_policy_there_is_a_sum_or_a_liar_is_reported_and_nobody_else(
    n: int, data: st.DataObject | None
) -> None:
    """The promise holds for any behaviour of the allowed corrupt devices, and any allowed drop-outs at any time."""
    corrupt, dropped = counts(n)
    lies, leaving = {0: "seed@4"}, {4: "@2", 5: "@3"}
    if data is not None:
        order = data.draw(st.permutations(range(n)))
        whens = st.sampled_from(["", "", "@1", "@2", "@3", "@4"])
        kinds = st.sampled_from([*DEALS, *REVEALS, "two", "three", "five", "accuse one", "accuse two", "without one"])
        lies = {i: data.draw(kinds) + data.draw(whens) for i in order[:corrupt]}
        leaving = {i: data.draw(whens) for i in order[corrupt : corrupt + dropped]}
    end, named = play(n, lies | leaving, policy=TIGHT[n])
    assert set(named) <= {D[i] for i in lies}
    if isinstance(end, server.Aborted):
        assert named.keys() & {D[i] for i, lie in lies.items() if "@" in lie}
    stay = {D[i] for i in range(n) if "@" not in (lies | leaving).get(i, "")}
    if len(stay) == n:
        assert isinstance(end, server.Released)
    if isinstance(end, server.Released):
        assert stay <= set(end.survivors)
        assert {D[i] for i, lie in lies.items() if lie in ("wrong", "own", "half", "nothing")} <= set(named)


@pytest.mark.slow
def test_liars_in_a_sparse_graph() -> None:
    """In a sparse graph some neighbours lie, one device deals wrong shares, and one vanishes."""
    policy = TrustPolicy(0.05, 0.05)
    end, named = play(80, {3: "wrong", 40: "half", 77: "wrong", 10: "seed", 20: "boxes", 30: "@4"}, policy=policy)
    assert isinstance(end, server.Released)
    assert named == {D[3]: TOLD, D[40]: TOLD, D[77]: TOLD, D[10]: DEALT, D[20]: DEALT}
