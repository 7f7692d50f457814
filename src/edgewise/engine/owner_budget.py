"""The privacy budget of a device over all runs that it takes part in, beside each run's own.

    budget = OwnerBudget(Budget(epsilon=10.0, delta=1e-6), FileLedgers(folder))
    charged = budget.last(device, plan)                        # what the store may have forgotten
    reason = budget.refusal(device, plan, round, answered)     # asked when an invitation comes
    budget.charge(device, plan, round)                         # before the update of the round leaves

A server knows what its own run spends. Only the device knows all runs, so its owner's cap is held here: an invitation
whose charge would pass it is refused with E-BUDGET. The reason says nothing of other runs.

The ledger and the device's store (``engine.ports.DeviceStore``) remember which rounds an update has left for. Where
they differ, one of them was deleted or put back from an older copy, and the device believes the later one: no round has
noise drawn for it twice at a single charge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgewise.core.errors import BudgetError
from edgewise.core.training import DeviceId
from edgewise.plan.plan import Plan
from edgewise.privacy import device_ledger
from edgewise.privacy.device_ledger import DeviceCharge, DeviceLedger
from edgewise.privacy.ledger import Budget, OverBudget

SPENT = "the owner of this device allows no more epsilon over all its runs"
UNCOUNTED = "this device took part in rounds of this run that its ledger does not have"
NO_EPSILON = "the owner of this device caps epsilon over all its runs, and this run promises none"


class DeviceLedgers(Protocol):
    """What devices gave away in all runs that they took part in. It outlives every run."""

    def charges(self, device: DeviceId) -> tuple[DeviceCharge, ...]:
        """All charges of a device, in order; none for a device that has no ledger yet. Raises StoreError for a damaged
        one."""
        ...

    def charge(self, device: DeviceId, new: DeviceCharge) -> None:
        """Write a charge down; one that stands there already is not written again. Call it before a frame of the round
        leaves.

        Raises StoreError where it cannot be kept: the frame must not leave then.
        """
        ...


@dataclass(frozen=True)
class OwnerBudget:
    """A cap on what devices give away over all runs.

    Attributes:
        cap: epsilon at delta, of all runs together. ledgers: where charges are kept.
    """

    cap: Budget
    ledgers: DeviceLedgers

    def last(self, device: DeviceId, plan: Plan) -> int | None:
        """The last round of a run that was charged to a device; None: there is none.

        Raises StoreError where the ledger cannot be read.
        """
        return max((c.round for c in self.ledgers.charges(device) if c.run == plan.run), default=None)

    def refusal(self, device: DeviceId, plan: Plan, round: int, answered: int | None = None) -> str:
        """Why a device takes no part in a round; empty where it may. Nothing is charged yet.

        ``answered``: the last round that the device's store says was answered, where an update may leave once only.
        Raises StoreError where the ledger cannot be read.
        """
        if plan.spend is None:
            return NO_EPSILON
        charged = self.last(device, plan)
        if answered is not None and (charged is None or charged < answered):
            return UNCOUNTED
        return SPENT if isinstance(self._with(device, plan, round), OverBudget) else ""

    def charge(self, device: DeviceId, plan: Plan, round: int) -> None:
        """Write the charge of a round down, once for each round of a run.

        Raises StoreError where it cannot be kept, BudgetError(E-BUDGET) where it would pass the cap: no frame may leave
        then.
        """
        if isinstance(self._with(device, plan, round), OverBudget):
            raise BudgetError("E-BUDGET", f"{SPENT}.", "raise the cap, or leave the run.")
        self.ledgers.charge(device, _of(plan, round))

    def spent(self, device: DeviceId) -> float:
        """Epsilon of a device over all its runs so far."""
        return self._ledger(device).spent

    def _ledger(self, device: DeviceId) -> DeviceLedger:
        return DeviceLedger(self.cap, self.ledgers.charges(device))

    def _with(self, device: DeviceId, plan: Plan, round: int) -> DeviceLedger | OverBudget:
        return device_ledger.charge(self._ledger(device), _of(plan, round))


def _of(plan: Plan, round: int) -> DeviceCharge:
    assert plan.spend is not None
    return DeviceCharge(plan.run, round, plan.spend.events[plan.phase(round)])
