"""The budget of a run: every release is written down before it happens, and the one that would exceed it is refused.

A ledger is a list of charges that only grows. A charge names the round, the attempt (a round that was cut off after its
charge is charged again: its sum may have been seen), the cohort that it was about, and the event. Devices of different
cohorts are disjoint (``round.sampling = "cyclic"``; one cohort otherwise), so the epsilon of a run is the largest over
cohorts, not their sum. What it says can be recomputed from the rows alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from edgewise.privacy import accountant
from edgewise.privacy.spend import Event


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be spent in all: (epsilon, delta)."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Charge:
    """One line. ``attempt``: names the session, e.g. by its nonce; ``cohort``: number of the disjoint group asked."""

    round: int
    attempt: str
    cohort: int
    event: Event


@dataclass(frozen=True, slots=True)
class Ledger:
    """The budget and what was charged against it."""

    budget: Budget
    charges: tuple[Charge, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """The charge would exceed the budget; ``epsilon`` is what it would have come to."""

    epsilon: float


def spent(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of all charges, recomputed from them."""
    cohorts: dict[int, Counter[Event]] = defaultdict(Counter)
    for c in charges:
        cohorts[c.cohort][replace(c.event, steps=1)] += c.event.steps
    alike = {tuple(sorted(events.items(), key=repr)) for events in cohorts.values()}
    # The coarse grid: it is what budgets are calibrated with, an upper bound, and quick enough for every round.
    return max((accountant.epsilon(dict(events), delta, accountant.COARSE) for events in alike), default=0.0)


def charge(ledger: Ledger, new: Charge) -> Ledger | Refused:
    """The ledger with one charge more, or why not. The same round and attempt are charged once."""
    if any((c.round, c.attempt) == (new.round, new.attempt) for c in ledger.charges):
        return ledger
    charges = (*ledger.charges, new)
    total = spent(charges, ledger.budget.delta)
    if total > ledger.budget.epsilon * (1.0 + 1e-9):
        return Refused(total)
    return replace(ledger, charges=charges)
