"""Records under secure aggregation: devices sum clipped records, and share the noise that hides one of them.

    clip each record's gradient to C, round, sum, add a discrete Gaussian share, wrap   (``privacy.record_noise``)

A device takes no step: it sends its mean clipped gradient at the round's model.

The noise is that of one record in the whole cohort's sum. Ten hospitals of 110 records so share what a sum of 1,100
needs, where DP-SGD on each of them adds noise for 110. The server sees sums only, and takes the steps.
"""

from __future__ import annotations

from math import sqrt

from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.errors import RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Post, Stage, fold
from edgewise.plan.mechanisms.base import BuiltMechanism, Mechanism, MechanismSentences, MechanismSetting
from edgewise.plan.promise import Noiser
from edgewise.privacy import accountant, card
from edgewise.privacy.record_noise import record_noise
from edgewise.privacy.spend import PrivacyEvent


def _build(setting: MechanismSetting, *, clip_l2: float, records: int) -> BuiltMechanism:
    """Build shares of discrete Gaussian noise on sums of at most ``records`` clipped records of a device.

    Raises:
        RecipeError: E-COMBO where single updates are not hidden.
        CompositionError: as ``record_noise``.
    """
    if not setting.hidden:
        raise RecipeError(
            "E-COMBO",
            'privacy = "distributed_dp" needs hidden updates. One share of the noise protects a record only in a sum.',
            '[merge] kind = "secure_sum" or "shared_sum".',
        )

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [record_noise(setting.spec, z, clip_l2, records), wrap()], []

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        found = [fold(space, ending(z)[0]).noise for space in setting.before]
        return tuple(PrivacyEvent("zcdp", "zero_out", rho=noise.rho, xi=noise.xi, unit="example") for noise in found)

    def says(z: float, after: Space) -> MechanismSentences:
        honest = after.quorum.honest
        total = after.noise.std * sqrt(honest) * records / after.l2
        return MechanismSentences(
            f"each device, a share: at least {total:.4g} times the clip of {clip_l2:g} of one record's gradient in "
            "every sum of all devices' records",
            unit="record (block of text) of one device, in all rounds",
            adjacency="one record is on a device or not, and which records of a device with more than "
            f"{records:,} count is its secret, while devices and their numbers of records are public",
            sampling=f"{setting.sampling.earns}; all records of a device count, up to {records:,}",
            blocks=" and for the n records on them, counted before the first round",
            honest=honest,
            fewer=card.epsilon_degradation(total, honest, setting.delta),
            continuous=accountant.gaussian_epsilon(total / sqrt(setting.rounds_each), setting.delta),
        )

    return BuiltMechanism(ending, events, says)


# Neighbours differ in one record. The fold's adjacency is that of devices, which send zeros where they cannot train.
MECHANISM = Mechanism(
    "records",
    "distributed_dp",
    Noiser.COHORT,
    "every device sums its clipped records and adds its share of noise before the sum is hidden: neither the server "
    "nor readers of the models learn more of one record than epsilon allows",
    _build,
    chosen={"unit": "example"},
    values_only=True,
    required=("records",),
)
