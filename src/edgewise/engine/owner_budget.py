"""Owner's privacy budget of a device over all runs that it takes part in, beside each run's own budget.

    budget = OwnerBudget(Budget(epsilon=10.0, delta=1e-6), FileLedgers(folder))
    charged = budget.last(device, plan)                        # round that the store may have forgotten
    reason = budget.refusal(device, plan, round, answered)     # asked when an invitation arrives
    budget.charge(device, plan, round)                         # before the update of the round leaves

A server knows what its own run spends. Only the device knows all runs, so the device enforces its owner's cap. It
refuses an invitation whose charge would pass the cap with E-BUDGET. The reason says nothing of other runs.

The ledger and the device's store (``engine.ports.DeviceStore``) both remember the rounds that an update has left for.
Where they differ, one of them was deleted or put back from an older copy, and the device believes the later one. So no
round has noise drawn for it twice at a single charge.
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
    """Durable charges of devices in all runs that they took part in. They outlive every run."""

    def charges(self, device: DeviceId) -> tuple[DeviceCharge, ...]:
        """Load all charges of a device, in order. None for a device without a ledger. Raises StoreError for a damaged
        ledger."""
        ...

    def charge(self, device: DeviceId, new: DeviceCharge) -> None:
        """Write a charge, unless it is written already. Call it before a frame of the round leaves.

        Raises StoreError where it cannot be saved. Then the frame must not leave.
        """
        ...


@dataclass(frozen=True)
class OwnerBudget:
    """Owner's cap on the privacy loss of devices over all runs.

    Attributes:
        cap: epsilon at delta, of all runs together. ledgers: durable charges.
    """

    cap: Budget
    ledgers: DeviceLedgers

    def last(self, device: DeviceId, plan: Plan) -> int | None:
        """Find the last round of a run that was charged to a device. None: there is none.

        Raises StoreError where the ledger cannot be read.
        """
        return max((c.round for c in self.ledgers.charges(device) if c.run == plan.run), default=None)

    def refusal(self, device: DeviceId, plan: Plan, round: int, answered: int | None = None) -> str | None:
        """Find the reason why a device takes no part in a round. None where it may. It charges nothing.

        Args: answered: the last round that the device answered, by its store, where an update may leave once only.
        Raises StoreError where the ledger cannot be read.
        """
        if plan.spend is None:
            return NO_EPSILON
        charged = self.last(device, plan)
        if answered is not None and (charged is None or charged < answered):
            return UNCOUNTED
        return SPENT if isinstance(self._charged_ledger(device, plan, round), OverBudget) else None

    def charge(self, device: DeviceId, plan: Plan, round: int) -> None:
        """Write the charge of a round, once for each round of a run.

        Raises StoreError where it cannot be saved, and BudgetError(E-BUDGET) where it would pass the cap. Then no frame
        may leave.
        """
        if isinstance(self._charged_ledger(device, plan, round), OverBudget):
            raise BudgetError("E-BUDGET", f"{SPENT}.", "raise the cap, or leave the run.")
        self.ledgers.charge(device, _charge_of_round(plan, round))

    def spent(self, device: DeviceId) -> float:
        """Compute the epsilon of a device over all its runs so far."""
        return self._device_ledger(device).spent

    def _device_ledger(self, device: DeviceId) -> DeviceLedger:
        """Ledger of a device over all of its runs."""
        return DeviceLedger(self.cap, self.ledgers.charges(device))

    def _charged_ledger(self, device: DeviceId, plan: Plan, round: int) -> DeviceLedger | OverBudget:
        """Charge a round to the ledger of a device."""
        return device_ledger.charge(self._device_ledger(device), _charge_of_round(plan, round))


def _charge_of_round(plan: Plan, round: int) -> DeviceCharge:
    """Make the charge of one round."""
    assert plan.spend is not None
    return DeviceCharge(plan.run, round, plan.spend.events[plan.phase(round)])
