"""What a plan promises about privacy, and by what means. Outside of ``plan/`` nobody compares privacy words.

    promise = promised("distributed_dp", dp, hidden=True)     # ``plan.mechanisms.known``
    promise.who_noises                          # Noiser.COHORT
    promise.leaves_once                         # True: an update of a round leaves its device once

Whatever runs, tests or describes a plan asks its promise, and never a word of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edgewise.plan.recipe.privacy import DP_WORDS, Privacy
from edgewise.privacy.spend import Unit


class Noiser(Enum):
    """Who adds the noise that an epsilon rests on."""

    NOBODY = "nobody"
    SERVER = "the server, to the sum"
    COHORT = "the devices of a cohort, to their sum, a share each"
    DEVICE = "each device, to its own update"
    STEPS = "each device, to every step of its training"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a plan promises.

    Attributes:
        word: the recipe's word, for sentences only.
        hidden: whether secure aggregation hides single updates from the server.
        who_noises: who adds the noise that an epsilon rests on.
        unit: whose data the epsilon is about; None without an epsilon.
    """

    word: Privacy
    hidden: bool
    who_noises: Noiser
    unit: Unit | None

    @property
    def noised_before_leaving(self) -> bool:
        """Whether an update is a function of noised values when it leaves its device, so that its epsilon holds against
        whoever reads it alone."""
        return self.who_noises in (Noiser.DEVICE, Noiser.STEPS)

    @property
    def leaves_once(self) -> bool:
        """Whether an update of a round leaves its device once: two sums that differ by one hidden update show it, and
        two noised copies of one update average the noise out."""
        return self.hidden or self.noised_before_leaving

    @property
    def noises_steps(self) -> bool:
        """Whether devices train with DP-SGD."""
        return self.who_noises is Noiser.STEPS


def promises_epsilon(resolved: Mapping[str, Any]) -> bool:
    """Whether a recipe promises an epsilon, by its resolved tables as a run records them."""
    return resolved.get("privacy") in DP_WORDS
