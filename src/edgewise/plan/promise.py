"""The promise of a plan about privacy, and the means that keep it.

    promise = promised("distributed_dp", dp, hidden=True)     # ``plan.mechanisms.known``
    promise.who_noises                          # Noiser.COHORT
    promise.leaves_once                         # True: an update of a round leaves its device once

Code that runs, tests or describes a plan asks its promise. Outside ``plan/`` nothing compares the words of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgewise.plan.recipe.privacy import DP_WORDS, Privacy
from edgewise.privacy.spend import Unit


class Noiser(Enum):
    """The party that adds the noise behind an epsilon."""

    NOBODY = "nobody"
    SERVER = "the server, to the sum"
    COHORT = "the devices of a cohort, to their sum, a share each"
    DEVICE = "each device, to its own update"
    STEPS = "each device, to every step of its training"


@dataclass(frozen=True, slots=True)
class Promise:
    """The promise of a plan about privacy.

    Attributes:
        word: the recipe's word, for sentences only.
        hidden: True where secure aggregation hides single updates from the server.
        who_noises: the party that adds the noise behind the epsilon.
        unit: the data that the epsilon protects, of one device or one example. None without an epsilon.
    """

    word: Privacy
    hidden: bool
    who_noises: Noiser
    unit: Unit | None

    @property
    def noised_before_leaving(self) -> bool:
        """True where an update is a function of noised values when it leaves its device.

        The epsilon then holds against anyone who reads that single update.
        """
        return self.who_noises in (Noiser.DEVICE, Noiser.STEPS)

    @property
    def leaves_once(self) -> bool:
        """True where an update of a round may leave its device only once.

        Two sums that differ by one hidden update would reveal it. Two noised copies of one update would average the
        noise out.
        """
        return self.hidden or self.noised_before_leaving

    @property
    def noises_sums_of_devices(self) -> bool:
        """True where the noise of a sum hides one device of it."""
        return self.who_noises in (Noiser.SERVER, Noiser.COHORT) and self.unit == "device"

    @property
    def sums_records(self) -> bool:
        """True where devices send sums of clipped records, each with its share of the noise."""
        return self.who_noises is Noiser.COHORT and self.unit == "example"

    @property
    def noises_steps(self) -> bool:
        """True where devices train with DP-SGD."""
        return self.who_noises is Noiser.STEPS


def promises_epsilon(resolved: Mapping[str, Any]) -> bool:
    """Tell whether a recipe promises an epsilon, from its resolved tables as a run records them."""
    return resolved.get("privacy") in DP_WORDS
