"""The budget of a run: every release is written down before it happens, and the one that would exceed it is refused.

A ledger is a list of charges that only grows. A charge names the round, the attempt, the cohort that it was about, and
the event. An attempt is a session with its own nonce: another one is charged again, for the sum of the first may have
been seen. A simulation that goes on after a crash plays the same session with the same noise, and its devices with it,
so that is the same attempt; devices that live on send an update to one session of a round only. Devices of different
cohorts are disjoint (``round.sampling = "cyclic"``; one cohort otherwise), so the epsilon of a run is the largest over
cohorts, not their sum. What it says can be recomputed from the rows alone: ``verify``.

Correlated noise ("matrix", "tree") is one release for its whole run: its rounds cost the event once, and a round more,
or a second attempt of one, is not covered by it, whatever the budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from math import inf, nan

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import CompositionError
from edgewise.privacy import accountant
from edgewise.privacy.spend import PrivacyEvent

RUN_LONG = ("matrix", "tree")  # kinds of which one event stands for all rounds
_HAIR = 1.0 + 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in all: (epsilon, delta)."""

    epsilon: float
    delta: float

    def holds(self, epsilon: float) -> bool:
        """Whether so much may be spent: at most the budget, but for the last digits of a float64."""
        return epsilon <= self.epsilon * _HAIR


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One line. ``attempt``: names the session, e.g. by its nonce; ``cohort``: number of the disjoint group asked."""

    round: int
    attempt: str
    cohort: int
    event: PrivacyEvent


@dataclass(frozen=True, slots=True)
class LedgerTally:
    """What charges come to.

    Attributes:
        times: charges of each event, by cohort.
        rounds: the rounds that were charged with each event that stands for a whole run.
        twice: whether one of these rounds was charged with its event more than once.
        at: the charge of each (round, attempt).
    """

    times: Mapping[int, Mapping[PrivacyEvent, int]] = field(default_factory=dict)
    rounds: Mapping[PrivacyEvent, AppendMap[int, None]] = field(default_factory=dict)
    twice: bool = False
    at: AppendMap[tuple[int, str], LedgerEntry] = field(default_factory=AppendMap)

    def plus(self, new: LedgerEntry) -> LedgerTally:
        """With one charge more; the old one stays as it is. Takes the same time however many charges there are."""
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
        """Of the cohort that has given away most, among ``cohorts`` or all."""
        chosen = self.times if cohorts is None else cohorts
        alike = {tuple(sorted(self._releases(cohort).items(), key=repr)) for cohort in chosen}
        return max((accountant.epsilon(dict(releases), delta, grid) for releases in alike), default=0.0)

    def overrun(self) -> bool:
        """Whether correlated noise was asked to cover what it does not: more rounds than it has, or one twice."""
        return self.twice or any(len(played) > event.rounds for event, played in self.rounds.items())

    def _releases(self, cohort: int) -> dict[PrivacyEvent, int]:
        return {event: 1 if event.kind in RUN_LONG else n for event, n in self.times[cohort].items()}


@dataclass(frozen=True, slots=True)
class Ledger:
    """The budget and what was charged against it. ``tally``, ``spent``: of ``charges``, where they were counted
    (``counted``); epsilon as of the function ``spent``."""

    budget: Budget
    charges: tuple[LedgerEntry, ...] = ()
    tally: LedgerTally | None = field(default=None, compare=False, repr=False)
    spent: float = field(default=nan, compare=False)


@dataclass(frozen=True, slots=True)
class OverBudget:
    """The charge would exceed the budget; ``epsilon`` is what it would have come to, ``why`` if it is not that."""

    epsilon: float
    why: str = ""

    @property
    def code(self) -> str:
        """Of the error that it becomes; exit status 7."""
        return "E-BUDGET"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rows alone say. ``epsilon``: recomputed, on the fine grid. ``problems``: none in an honest ledger."""

    epsilon: float
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """No problem was found."""
        return not self.problems


def start(run: str, instance: str) -> str:
    """The digest before the first row of a ledger, hex: of one run in one place only."""
    return hashlib.sha256(json.dumps(["edgewise ledger", run, instance]).encode()).hexdigest()


def link(before: str, new: LedgerEntry) -> str:
    """The digest of a row, hex; ``before``: that of the row before it. A row that is changed, removed, swapped or taken
    from another ledger breaks all links after it."""
    row = [before, new.round, new.attempt, new.cohort, new.event.to_plain()]
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()


def tally(charges: Iterable[LedgerEntry]) -> LedgerTally:
    """Count charges; equal ones are counted as often as they stand there."""
    return reduce(LedgerTally.plus, charges, LedgerTally())


def spent(charges: Iterable[LedgerEntry], delta: float) -> float:
    """Epsilon of all charges, recomputed from them; ``inf`` where correlated noise does not cover its rounds."""
    return _spent(tally(charges), delta)


def _spent(counted: LedgerTally, delta: float) -> float:
    # The coarse grid: it is what budgets are calibrated with, an upper bound, and quick enough for every round.
    return inf if counted.overrun() else counted.epsilon(delta, accountant.COARSE)


def counted(ledger: Ledger) -> Ledger:
    """The same ledger with ``tally`` and ``spent``. Raises CompositionError where its events cannot be added up."""
    if ledger.tally is not None:
        return ledger
    count = tally(ledger.charges)
    return replace(ledger, tally=count, spent=_spent(count, ledger.budget.delta))


def charge(ledger: Ledger, new: LedgerEntry) -> Ledger | OverBudget:
    """The ledger with one charge more, or why not. The same round and attempt are charged once.

    Guarantees: a ledger that comes back holds at most its budget. Charging twice changes nothing; charging *another*
    event under a name that is already charged is refused, since it would be free.
    Cost: that of one composition of what the cohort has given away, kept for the next call with the same counts. A
        charge moves the epsilon of its own cohort only, so the other cohorts' are not computed again.
    """
    try:
        ledger = counted(ledger)
        assert ledger.tally is not None
        if (old := ledger.tally.at.get((new.round, new.attempt))) is not None:
            return ledger if old == new else OverBudget(inf, "this attempt is charged already, with another event")
        after = ledger.tally.plus(new)
        if after.overrun():
            return OverBudget(
                inf, "correlated noise covers each of its rounds once, and no others; leave the round out"
            )
        total = max(ledger.spent, after.epsilon(ledger.budget.delta, accountant.COARSE, (new.cohort,)))
    except CompositionError as e:  # events that cannot be added up: no number would be true
        return OverBudget(inf, e.what)
    if not ledger.budget.holds(total):
        return OverBudget(total)
    return Ledger(ledger.budget, (*ledger.charges, new), after, total)


def verify(charges: Iterable[LedgerEntry], budget: Budget) -> Verdict:
    """Recompute everything from the rows, in order: for an auditor who trusts nothing but them.

    Problems: an epsilon above the budget; a (round, attempt) that stands there twice; rounds that go back, which an
    append-only list cannot; events that cannot be added up; correlated noise beyond its rounds.
    """
    rows = tuple(charges)
    count, problems, latest = tally(rows), [], -1
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
        return Verdict(inf, (*problems, e.what))
    total = inf if count.overrun() else total
    if not budget.holds(total):
        problems.append(f"epsilon {total:.6g} is above the budget of {budget.epsilon:g}")
    return Verdict(total, tuple(problems))
