"""Privacy budget of a run: checked before anyone trains, and charged before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.errors import BudgetError, StoreError
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.ports import Store
from edgewise.plan.plan import Plan
from edgewise.privacy import ledger
from edgewise.privacy.ledger import Ledger, LedgerEntry, OverBudget


class PrivacyBudget:
    """Privacy budget of a run. Without differential privacy in the plan it does nothing.

    The stored ledger is read once. It grows only by the charges that this object writes, because a store has one
    writer.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._plan, self._store = plan, store
        self._charged: Ledger | None = None

    def _entry_of_round(self, round: int, attempt: str, before: Sequence[LedgerEntry]) -> LedgerEntry | None:
        """Make the ledger entry of a round. None without differential privacy. ``before``: the charges before it."""
        spend, sampling = self._plan.spend, self._plan.sampling
        if spend is None:
            return None
        cohort = round % sampling.groups
        if sampling.buffer is not None:
            cohort = ledger.place_in_window(before, round, sampling.groups)
        return LedgerEntry(round, attempt, cohort, spend.events[self._plan.phase(round)])

    def _new_entry(self, round: int, attempt: str) -> LedgerEntry | None:
        """Make the next entry of the ledger, or return the attempt's own, once it is charged."""
        if self._plan.spend is None:
            return None
        charged = self._run_ledger()
        at = ledger.counted_ledger(charged).tally
        assert at is not None
        return at.at.get((round, attempt)) or self._entry_of_round(round, attempt, charged.charges)

    def _run_ledger(self) -> Ledger:
        """Ledger of the run, with all charges that the store has."""
        assert self._plan.spend is not None
        if self._charged is None:
            self._charged = Ledger(self._plan.spend.budget, self._store.charges())
        return self._charged

    def _charged_ledger(self, new: LedgerEntry) -> Ledger:
        """Charge an entry. Raises BudgetError if it exceeds the budget."""
        after = ledger.charge_ledger(self._run_ledger(), new)
        if isinstance(after, OverBudget):
            raise self._over_budget_error(new.round, after)
        return after

    def _write_charge(self, new: LedgerEntry) -> None:
        """Charge an entry, and store it."""
        after = self._charged_ledger(new)
        self._store.charge(new)
        self._charged = after

    def verify(self, checkpoint: Checkpoint) -> None:
        """Compare the stored ledger with the releases up to a checkpoint, before the run resumes from it.

        Raises StoreError(E-CHECKPOINT) where a charge is not the plan's or is of a round after this one, where a round
        was released without a charge, and where epsilon is less than it was.
        """
        if self._plan.spend is None:
            return
        charges, played = self._run_ledger().charges, checkpoint.next_round
        for i, c in enumerate(charges):
            if c != self._entry_of_round(c.round, c.attempt, charges[max(0, i - 1) : i]) or not 0 <= c.round <= played:
                raise self._unsound_ledger_error(f"the charge of round {c.round} is not one that this run makes")
        needed = played if self._charges_before_sending else checkpoint.state.round
        if (charged := len({c.round for c in charges if c.round < played})) < needed:
            raise self._unsound_ledger_error(f"{needed} rounds were released, {charged} were charged")
        if self.epsilon() * (1.0 + 1e-6) < checkpoint.epsilon:  # Another machine may round differently.
            raise self._unsound_ledger_error(f"epsilon fell from {checkpoint.epsilon:.6g} to {self.epsilon():.6g}")

    @property
    def _charges_before_sending(self) -> bool:
        """Tell whether devices add their noise before they send, so that a charge is due before sending."""
        return self._plan.promise.noised_before_leaving

    def _unsound_ledger_error(self, how: str) -> StoreError:
        """Make the error for a ledger that does not fit the run."""
        what = f"the privacy ledger does not fit the run: {how}."
        return StoreError(
            "E-CHECKPOINT", what, "put a whole copy of the folder in its place, or start again with another --out."
        )

    def begin_round(self, round: int, attempt: str) -> None:
        """Check a round against the budget. Charge it at once where others may read what devices send.

        Raises BudgetError(E-BUDGET) where the round would exceed the budget.
        """
        if (new := self._new_entry(round, attempt)) is None:
            return
        if self._charges_before_sending:
            self._write_charge(new)
        else:
            self._charged_ledger(new)

    def charge(self, round: int, attempt: str) -> None:
        """Write the round's charge, before its sum is opened. Raises as ``begin_round``."""
        if (new := self._new_entry(round, attempt)) is not None:
            self._write_charge(new)

    def epsilon(self) -> float:
        """Compute epsilon so far. 0.0 without differential privacy."""
        return 0.0 if self._plan.spend is None else ledger.counted_ledger(self._run_ledger()).spent

    def _over_budget_error(self, round: int, refused: OverBudget) -> BudgetError:
        """Make the error for a round that the budget does not allow."""
        assert self._plan.spend is not None
        return BudgetError(
            "E-BUDGET",
            f"round {round} cannot be charged: {refused.why}."
            if refused.why is not None
            else f"round {round} would bring epsilon to {refused.epsilon:.4g}, the budget is "
            f"{self._plan.spend.budget.epsilon:g}.",
            "the model of the last round stays; `edgewise report` shows it. Another run needs a budget of its own.",
        )
