"""Privacy ledger of a run: every release is charged before it happens, and one that exceeds the budget is refused.

A ledger is an append-only list of charges. A charge names the round, the attempt, the cohort and the event. An attempt
is a session with its own nonce. A second attempt is charged again, because the sum of the first may have been seen. A
simulation that resumes after a crash plays the same session with the same noise, and its devices with it, so that is
the same attempt. Devices that live on send an update to one session of a round only. Devices of different cohorts are
disjoint (``round.sampling = "cyclic"``, one cohort otherwise), so the epsilon of a run is the largest over cohorts, not
their sum. Asynchronous rounds have no disjoint cohorts. There the number is that of ``place_in_window``.
``verify_ledger`` recomputes everything from the rows alone.

Correlated noise ("matrix", "tree") is one release for its whole run. Its rounds cost the event once. It does not cover
a further round, or a second attempt of one, whatever the budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from math import inf, nan

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import CompositionError
from edgewise.privacy import accountant
from edgewise.privacy.spend import PrivacyEvent

RUN_LONG = ("matrix", "tree")  # kinds for which one event stands for all rounds
_HAIR = 1.0 + 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """Privacy budget of a run: (epsilon, delta)."""

    epsilon: float
    delta: float

    def holds(self, epsilon: float) -> bool:
        """Tell whether ``epsilon`` is at most the budget, but for the last digits of a float64."""
        return epsilon <= self.epsilon * _HAIR


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Charge of one round. ``attempt``: name of the session, e.g. its nonce. ``cohort``: number of the disjoint group
    that was asked, or in asynchronous rounds ``place_in_window``."""

    round: int
    attempt: str
    cohort: int
    event: PrivacyEvent


@dataclass(frozen=True, slots=True)
class LedgerTally:
    """Counts of charges.

    Attributes:
        times: cohort -> event -> number of its charges.
        rounds: event that stands for a whole run -> the rounds that were charged with it.
        twice: one of these rounds was charged with its event more than once.
        at: (round, attempt) -> its charge.
    """

    times: Mapping[int, Mapping[PrivacyEvent, int]] = field(default_factory=dict)
    rounds: Mapping[PrivacyEvent, AppendMap[int, None]] = field(default_factory=dict)
    twice: bool = False
    at: AppendMap[tuple[int, str], LedgerEntry] = field(default_factory=AppendMap)

    def plus(self, new: LedgerEntry) -> LedgerTally:
        """Count one charge more, in a new tally. Takes constant time for any number of charges."""
        cohort, event, name = new.cohort, new.event, (new.round, new.attempt)
        counts = self.times.get(cohort, {})
        times = {**self.times, cohort: {**counts, event: counts.get(event, 0) + 1}}
        rounds, twice = self.rounds, self.twice
        if event.kind in RUN_LONG:
            played = rounds.get(event, AppendMap[int, None]())
            twice = twice or new.round in played
            rounds = {**rounds, event: played if new.round in played else played.plus(new.round, None)}
        return LedgerTally(times, rounds, twice, self.at if name in self.at else self.at.plus(name, new))

    def epsilon(self, delta: float, grid: float, cohorts: Iterable[int] | None = None) -> float:
        """Compute the largest epsilon of a cohort, among ``cohorts`` or all."""
        chosen = self.times if cohorts is None else cohorts
        alike = {tuple(sorted(self._release_counts(cohort).items(), key=repr)) for cohort in chosen}
        return max((accountant.epsilon(dict(releases), delta, grid) for releases in alike), default=0.0)

    def overrun(self) -> bool:
        """Tell whether charges exceed the cover of correlated noise: more rounds than it has, or one round twice."""
        return self.twice or any(len(played) > event.rounds for event, played in self.rounds.items())

    def _release_counts(self, cohort: int) -> dict[PrivacyEvent, int]:
        """Count the releases of each event for one cohort."""
        return {event: 1 if event.kind in RUN_LONG else n for event, n in self.times[cohort].items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    """Budget of a run and the charges against it. ``tally``, ``spent``: counts and epsilon of ``charges``, once they
    are counted (``counted``)."""

    budget: Budget
    charges: tuple[LedgerEntry, ...] = ()
    tally: LedgerTally | None = field(default=None, compare=False, repr=False)
    spent: float = field(default=nan, compare=False)


@dataclass(frozen=True, slots=True)
class OverBudget:
    """Refusal of a charge. ``epsilon``: the epsilon with the charge. ``why``: the reason where it is another than the
    budget, None where the budget is the reason."""

    epsilon: float
    why: str | None = None

    @property
    def code(self) -> str:
        """Code of the error that the caller raises. Exit status 7."""
        return "E-BUDGET"


@dataclass(frozen=True, slots=True)
class LedgerVerdict:
    """Result of an audit of the rows. ``epsilon``: recomputed, on the fine grid. ``problems``: empty if honest."""

    epsilon: float
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Tell whether no problem was found."""
        return not self.problems


def first_ledger_link(run: str, instance: str) -> str:
    """Compute the digest before the first row of a ledger, hex, of one run in one place only."""
    return hashlib.sha256(json.dumps(["edgewise ledger", run, instance]).encode()).hexdigest()


def ledger_link(before: str, new: LedgerEntry) -> str:
    """Compute the digest of a row, hex. ``before``: the digest of the row before it.

    A row that is changed, removed, swapped or taken from another ledger breaks all links after it.
    """
    row = [before, new.round, new.attempt, new.cohort, new.event.to_plain()]
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def place_in_window(before: Sequence[LedgerEntry], round: int, rest: int) -> int:
    """Compute the ``cohort`` of the next charge where two rounds of a device lie ``rest`` or more apart.

    Charges are cut into windows, in order. A window starts with a charge of number 0 and has the charges of the next
    ``rest`` - 1 rounds, each numbered by its distance from the start. Another attempt of a round starts a window.

    Guarantees: a device is in one round of a window at most, so its releases are no more than the windows, of which
        number 0 has one charge each, and every other number one at most. This holds whichever rounds are charged.
        Where each round from 0 on is charged once, the number is ``round % rest``.
    Args:
        before: all charges so far, in order, or the last of them alone.
    """
    if not before or round <= before[-1].round:
        return 0
    distance = round - (before[-1].round - before[-1].cohort)
    return distance if distance < rest else 0


def ledger_tally(charges: Iterable[LedgerEntry]) -> LedgerTally:
    """Count charges. Equal ones count as often as they occur."""
    return reduce(LedgerTally.plus, charges, LedgerTally())


def spent_epsilon(charges: Iterable[LedgerEntry], delta: float) -> float:
    """Compute the epsilon of all charges. ``inf`` where correlated noise does not cover its rounds."""
    return _spent_epsilon(ledger_tally(charges), delta)


def _spent_epsilon(counted: LedgerTally, delta: float) -> float:
    """Compute the epsilon of what is charged. It is infinite where more is charged than was planned."""
    # Budgets are calibrated with the coarse grid. It gives an upper bound and is quick enough for every round.
    return inf if counted.overrun() else counted.epsilon(delta, accountant.COARSE)


def counted_ledger(ledger: Ledger) -> Ledger:
    """Fill in ``tally`` and ``spent`` of a ledger. Raises CompositionError where its events cannot be added up."""
    if ledger.tally is not None:
        return ledger
    count = ledger_tally(ledger.charges)
    return replace(ledger, tally=count, spent=_spent_epsilon(count, ledger.budget.delta))


def charge_ledger(ledger: Ledger, new: LedgerEntry) -> Ledger | OverBudget:
    """Add one charge to a ledger, or refuse it. The same round and attempt are charged once.

    Guarantees: a returned ledger holds at most its budget. Charging twice changes nothing. Charging *another* event
        under a name that is already charged is refused, because it would be free.
    Cost: one composition of the cohort's charges, cached for the next call with the same counts. A charge moves the
        epsilon of its own cohort only, so the other cohorts' are not computed again.
    """
    try:
        ledger = counted_ledger(ledger)
        assert ledger.tally is not None
        if (old := ledger.tally.at.get((new.round, new.attempt))) is not None:
            return ledger if old == new else OverBudget(inf, "this attempt is charged already, with another event")
        after = ledger.tally.plus(new)
        if after.overrun():
            return OverBudget(
                inf, "correlated noise covers each of its rounds once, and no others; leave the round out"
            )
        total = max(ledger.spent, after.epsilon(ledger.budget.delta, accountant.COARSE, (new.cohort,)))
    except CompositionError as e:  # No number would be true for events that cannot be added up.
        return OverBudget(inf, e.what)
    if not ledger.budget.holds(total):
        return OverBudget(total)
    return Ledger(ledger.budget, (*ledger.charges, new), after, total)


def verify_ledger(charges: Iterable[LedgerEntry], budget: Budget) -> LedgerVerdict:
    """Recompute everything from the rows, in order, for an auditor who trusts nothing else.

    Problems: an epsilon above the budget, a (round, attempt) that occurs twice, rounds that decrease, which cannot
    happen in an append-only list, events that cannot be added up, and correlated noise beyond its rounds.
    """
    rows = tuple(charges)
    count, problems, latest = ledger_tally(rows), [], -1
    if len(count.at) < len(rows):
        problems.append(f"{len(rows) - len(count.at)} of {len(rows)} rows repeat a round and attempt")
    for number, c in enumerate(rows):
        if c.round < latest:
            problems.append(f"row {number} is of round {c.round}, after one of round {latest}")
        latest = max(latest, c.round)
    if count.overrun():
        problems.append("correlated noise covers each of its rounds once, and no others")
    try:
        total = count.epsilon(budget.delta, accountant.FINE)
    except CompositionError as e:
        return LedgerVerdict(inf, (*problems, e.what))
    total = inf if count.overrun() else total
    if not budget.holds(total):
        problems.append(f"epsilon {total:.6g} is above the budget of {budget.epsilon:g}")
    return LedgerVerdict(total, tuple(problems))
