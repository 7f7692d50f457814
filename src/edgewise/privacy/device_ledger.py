"""Privacy ledger of a device over all runs that it took part in, against its owner's cap.

    ledger = DeviceLedger(Budget(epsilon=10.0, delta=1e-6))
    after = charge(ledger, DeviceCharge(run, round, event))      # a DeviceLedger, or OverBudget

    epsilon = epsilon(all events together, delta)

A run counts its own rounds only (``privacy.ledger``). Here the rounds of all runs are composed, also those of different
neighbours and units (``accountant.composed_epsilon``). The epsilon is for two worlds that differ by the device in the
sense of each run. A reader of the device's part of a round, or of the models after it, knows that the device took
part. So sampling of devices amplifies nothing here (``PrivacyEvent.seen``), and a round without the device costs it
nothing.
Correlated noise is one release for its whole run. Its rounds cost the event once, up to as many as it was sized for.
Source: Kairouz, Oh, Viswanath 2015 (composition); Zhu, Dong, Wang 2022 (of different neighbours).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf

from edgewise.privacy import accountant
from edgewise.privacy.ledger import RUN_LONG, Budget, OverBudget
from edgewise.privacy.spend import PrivacyEvent


@dataclass(frozen=True, slots=True)
class DeviceCharge:
    """Charge of one round of one run that a device takes part in. ``event``: the privacy event of its release."""

    run: str
    round: int
    event: PrivacyEvent


@dataclass(frozen=True, slots=True)
class DeviceLedger:
    """Owner's cap over all runs, and the charges against it."""

    cap: Budget
    charges: tuple[DeviceCharge, ...] = ()

    @property
    def spent(self) -> float:
        """Epsilon of all charges. ``inf`` where they cannot be composed."""
        return spent(self.charges, self.cap.delta)


def spent(charges: Iterable[DeviceCharge], delta: float) -> float:
    """Compute the epsilon of a device's rounds in all its runs.

    Each charge counts once, however often it occurs. ``inf`` where correlated noise was not sized for so many rounds of
    one device, or where an event has no noise.
    """
    events: Counter[PrivacyEvent] = Counter()
    rounds: Counter[tuple[str, PrivacyEvent]] = Counter()
    for one in set(charges):
        event = replace(one.event.seen, steps=1)
        if event.kind in RUN_LONG:
            rounds[one.run, event] += 1
            if rounds[one.run, event] > max(1, event.takes):
                return inf
            if rounds[one.run, event] > 1:
                continue
        events[event] += one.event.steps
    return accountant.composed_epsilon(events, delta)


def charge(ledger: DeviceLedger, new: DeviceCharge) -> DeviceLedger | OverBudget:
    """Add one charge to a ledger, or refuse it. The same round of the same run is charged once.

    Guarantees: a returned ledger holds at most its cap. Another event for a round that is charged already is refused,
        because it would be free.
    """
    for old in ledger.charges:
        if (old.run, old.round) == (new.run, new.round):
            return ledger if old == new else OverBudget(inf, "this round is charged already, with another event")
    after = replace(ledger, charges=(*ledger.charges, new))
    return after if ledger.cap.holds(after.spent) else OverBudget(after.spent)
