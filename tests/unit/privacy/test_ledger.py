"""The ledger: a budget that is never exceeded, charges that cost once, rows that an auditor can recompute."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.core.errors import REGISTRY
from edgewise.privacy import ledger
from edgewise.privacy.accountant import COARSE, epsilon
from edgewise.privacy.ledger import (
    Budget,
    Ledger,
    LedgerEntry,
    LedgerVerdict,
    OverBudget,
    charge_ledger,
    spent_epsilon,
    verify_ledger,
)
from edgewise.privacy.spend import PrivacyEvent, fixed_size_event, gaussian, matrix, poisson, record_level, tree_event

DELTA = 1e-5
ROOM = Budget(1e6, DELTA)


def play(book: Ledger, *charges: LedgerEntry) -> Ledger | OverBudget:
    """All of them, or the first refusal."""
    for new in charges:
        after = charge_ledger(book, new)
        if isinstance(after, OverBudget):
            return after
        book = after
    return book


def rows(event: PrivacyEvent, rounds: int, groups: int = 1) -> list[LedgerEntry]:
    return [LedgerEntry(i, f"a{i}", i % groups, event) for i in range(rounds)]


def test_another_event_under_a_charged_name_is_not_free() -> None:
    book = play(Ledger(ROOM), LedgerEntry(0, "a", 0, gaussian(4.0)))
    assert isinstance(book, Ledger)
    assert charge_ledger(book, LedgerEntry(0, "a", 0, gaussian(4.0))) is book
    for other in (LedgerEntry(0, "a", 0, gaussian(0.1)), LedgerEntry(0, "a", 1, gaussian(4.0))):
        refused = charge_ledger(book, other)
        assert isinstance(refused, OverBudget)
        assert refused.epsilon == inf
        assert "already" in (refused.why or "")


def test_a_refusal_is_a_spent_budget() -> None:
    refused = charge_ledger(Ledger(Budget(1.0, DELTA)), LedgerEntry(0, "a", 0, gaussian(1.0)))
    assert isinstance(refused, OverBudget)
    assert refused.epsilon == pytest.approx(4.377178, abs=1e-6)
    assert refused.why is None
    assert REGISTRY[refused.code].exit_status == 7


@pytest.mark.slow
def test_events_that_do_not_add_up_are_refused() -> None:
    book = play(Ledger(ROOM), LedgerEntry(0, "a", 0, poisson(1.0, 0.1)))
    assert isinstance(book, Ledger)
    for other in (fixed_size_event(2.0, 100, 10), record_level(1.0, 0.1, 5), gaussian(1.0)):
        refused = charge_ledger(book, LedgerEntry(1, "a", 0, other))
        assert isinstance(refused, OverBudget)
        assert refused.epsilon == inf
        assert "cannot be added up" in (refused.why or "")


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from("ab"), st.sampled_from([2.0, 3.0, 8.0])), min_size=1, max_size=12
    ),
    st.floats(1.0, 12.0),
)
def test_no_order_of_charges_exceeds_the_budget(asked: list[tuple[int, str, float]], limit: float) -> None:
    """Whatever is asked: what is in the ledger was within the budget, counted from scratch; refusals would not be."""
    book = Ledger(Budget(limit, DELTA))
    for round, attempt, z in asked:
        new = LedgerEntry(round, attempt, 0, gaussian(z))
        after = charge_ledger(book, new)
        if isinstance(after, Ledger):
            assert after.charges[: len(book.charges)] == book.charges, "rows were changed or dropped"
            # a ledger without its running count says the same
            assert after == charge_ledger(Ledger(book.budget, book.charges), new)
            book = after
        elif after.why is None:
            assert spent_epsilon((*book.charges, new), DELTA) > limit
    assert spent_epsilon(book.charges, DELTA) <= limit * (1 + 1e-8)


def test_the_running_count_is_that_of_the_rows() -> None:
    charges = rows(gaussian(3.0), 7, groups=3) + rows(gaussian(2.0), 4)
    charges = [replace(c, attempt=f"{c.attempt}-{i}") for i, c in enumerate(charges)]
    book = play(Ledger(ROOM), *charges)
    assert isinstance(book, Ledger)
    assert book.tally is not None
    assert book.tally == ledger.ledger_tally(book.charges)


@pytest.mark.slow
def test_sampled_charges_cost_what_the_accountant_says() -> None:
    book = play(Ledger(ROOM), *rows(poisson(1.0, 0.01), 40))
    assert isinstance(book, Ledger)
    assert spent_epsilon(book.charges, DELTA) == pytest.approx(
        epsilon({poisson(1.0, 0.01): 40}, DELTA, COARSE), abs=1e-12
    )


@pytest.mark.parametrize("event", [matrix(1.0, 5, 2, 2), tree_event(4.0, 5)])
def test_correlated_noise_is_paid_once_and_covers_each_of_its_rounds_once(event: PrivacyEvent) -> None:
    book = play(Ledger(ROOM), *rows(event, 5))
    assert isinstance(book, Ledger)
    assert spent_epsilon(book.charges, DELTA) == pytest.approx(epsilon({event: 1}, DELTA))
    for beyond in (LedgerEntry(5, "x", 0, event), LedgerEntry(4, "again", 0, event), LedgerEntry(5, "x", 1, event)):
        refused = charge_ledger(book, beyond)
        assert isinstance(refused, OverBudget)
        assert "correlated" in (refused.why or "")
        assert spent_epsilon((*book.charges, beyond), DELTA) == inf


def test_the_noise_of_turns_is_one_stream() -> None:
    """Cohorts that take turns are in the same rounds' noise: together they may not use more rounds than it has."""
    event = matrix(1.0, 4, 2, 2)
    book = play(Ledger(ROOM), *rows(event, 4, groups=2))
    assert isinstance(book, Ledger)
    assert spent_epsilon(book.charges, DELTA) == pytest.approx(epsilon({event: 1}, DELTA))
    assert isinstance(charge_ledger(book, LedgerEntry(4, "a", 0, event)), OverBudget)


def test_an_honest_ledger_verifies() -> None:
    charges = rows(gaussian(4.0), 6, groups=2)
    verdict = verify_ledger(charges, Budget(epsilon({gaussian(4.0): 3}, DELTA), DELTA))
    assert verdict == LedgerVerdict(pytest.approx(epsilon({gaussian(4.0): 3}, DELTA)), ())
    assert verdict.sound
    assert verify_ledger([], Budget(1.0, DELTA)) == LedgerVerdict(0.0, ())


@pytest.mark.parametrize(
    ("charges", "problem"),
    [
        (rows(gaussian(1.0), 1), "above the budget"),
        ([*rows(gaussian(9.0), 2), LedgerEntry(1, "a1", 0, gaussian(9.0))], "repeat"),
        ([LedgerEntry(3, "a", 0, gaussian(9.0)), LedgerEntry(2, "a", 0, gaussian(9.0))], "row 1 is of round 2, after"),
        ([LedgerEntry(0, "a", 0, gaussian(9.0)), LedgerEntry(1, "a", 0, poisson(9.0, 0.5))], "cannot be added up"),
        (rows(matrix(9.0, 2, 1, 2), 3), "correlated"),
    ],
)
def test_what_an_auditor_finds(charges: list[LedgerEntry], problem: str) -> None:
    verdict = verify_ledger(charges, Budget(3.0, DELTA))
    assert not verdict.sound
    assert any(problem in found for found in verdict.problems)


def test_a_repeated_row_counts_for_the_auditor() -> None:
    """The writer charges once, so a second row is a release that somebody else wrote down: it is paid for."""
    twice = [LedgerEntry(0, "a", 0, gaussian(4.0))] * 2
    assert verify_ledger(twice, ROOM).epsilon == pytest.approx(epsilon({gaussian(4.0): 2}, DELTA))


ATTEMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2)), max_size=9)  # rounds skipped, then attempts


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(ATTEMPTS, st.integers(1, 4))
def test_windows_count_as_many_releases_as_a_resting_device_may_be_in(script: list[tuple[int, int]], rest: int) -> None:
    charges: list[LedgerEntry] = []
    weights: dict[int, int] = {}
    round = -1
    for skipped, attempts in script:
        round += 1 + skipped
        weights[round] = attempts
        for name in range(attempts):
            place = ledger.place_in_window(charges, round, rest)
            assert place == ledger.place_in_window(charges[-1:], round, rest)
            charges.append(LedgerEntry(round, f"a{name}", place, gaussian(1.0)))
    counted = max((sum(n.values()) for n in ledger.ledger_tally(charges).times.values()), default=0)
    most: dict[int, int] = {}  # up to a round, the most attempts of rounds that lie ``rest`` apart
    for r in range(round + 1):
        most[r] = max(most.get(r - 1, 0), most.get(r - rest, 0) + weights.get(r, 0))
    possible = most.get(round, 0)
    assert counted >= possible
    if all(n == 1 for n in weights.values()):
        assert counted == possible <= -(-(round + 1) // rest)


def test_windows_of_rounds_without_a_gap_are_those_of_turns() -> None:
    charges: list[LedgerEntry] = []
    for round in range(11):
        place = ledger.place_in_window(charges, round, 4)
        assert place == round % 4
        charges.append(LedgerEntry(round, "a", place, gaussian(1.0)))
