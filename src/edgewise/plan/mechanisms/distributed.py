"""Distributed noise: every device of a cohort adds a share, and secure aggregation reveals only the sum.

    clip to C, rotate, round to integers, add a discrete Gaussian share, wrap into a ring   (``privacy.distributed``)

Together, the shares of the honest devices in the smallest sum have the standard deviation z C.
Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387.
"""

from __future__ import annotations

from math import sqrt

from edgewise.codecs.project.rotate import BLOCK, rotate
from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.errors import RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Post, Stage, fold
from edgewise.plan.mechanisms.base import (
    BuiltMechanism,
    Mechanism,
    MechanismSentences,
    MechanismSetting,
    mechanism_covered_stages,
)
from edgewise.plan.promise import Noiser
from edgewise.privacy import accountant, card
from edgewise.privacy.distributed import discrete_gaussian_noise
from edgewise.privacy.spend import PrivacyEvent


def _build(setting: MechanismSetting, *, clip_l2: float, tensor_l2: float, bits: int) -> BuiltMechanism:
    """Build shares of discrete Gaussian noise in a ring of ``bits`` bits; 0 = the smallest number that will do.

    Raises:
        RecipeError: E-COMBO where single updates are not hidden.
        CompositionError: as ``covered`` and ``discrete_gaussian_noise``.
    """
    if not setting.hidden:
        raise RecipeError(
            "E-COMBO",
            'privacy = "distributed_dp" needs hidden updates. One share of the noise protects a device only in a sum.',
            '[merge] kind = "secure_sum" or "shared_sum".',
        )
    bounds = mechanism_covered_stages(setting, clip_l2, tensor_l2)
    shortest = min(fold(space, bounds).dim for space in setting.before)
    block = max(64, min(BLOCK, 1 << max(0, shortest.bit_length() - 1)))  # Take the largest block that is filled.

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [*bounds, rotate(block), discrete_gaussian_noise(z, bits or None), wrap()], []

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        found = [fold(space, ending(z)[0]).noise for space in setting.before]
        return tuple(PrivacyEvent("zcdp", setting.before[0].adjacency, rho=noise.rho, xi=noise.xi) for noise in found)

    def says(z: float, after: Space) -> MechanismSentences:
        honest, each = after.quorum.honest, after.noise.std
        least = each * sqrt(honest) / after.l2
        return MechanismSentences(
            f"each device, {each:.4g} per coordinate; at least {each * sqrt(honest):.4g} in every sum",
            honest=honest,
            fewer=card.epsilon_degradation(least, honest, setting.delta),
            continuous=accountant.gaussian_epsilon(least / sqrt(setting.rounds_each), setting.delta),
        )

    return BuiltMechanism(ending, events, says)


MECHANISM = Mechanism(
    "distributed",
    "distributed_dp",
    Noiser.COHORT,
    "every device adds its share of noise before its update is hidden: neither the server nor readers of the models "
    "learn more of a device than epsilon allows",
    _build,
    values_only=True,
)
