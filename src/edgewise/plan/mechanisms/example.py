"""Noise in every step: devices train with DP-SGD, which protects single blocks of text.

An update is a function of noised gradients and of public values. Any stage may follow, and so may error feedback. Its
memory holds parts of earlier updates, and each of these was charged in its round. All messages of a device together
are post-processing of its noised steps. A weight is not, because it counts the device's tokens.
Source: Abadi et al. 2016, arXiv:1607.00133; ``learn.dp_sgd``.
"""

from __future__ import annotations

from edgewise.core.space import Space
from edgewise.core.stage import WEIGHT, Post, Stage
from edgewise.plan.mechanisms.base import BuiltMechanism, Mechanism, MechanismSentences, MechanismSetting
from edgewise.plan.promise import Noiser
from edgewise.privacy import grid, rules
from edgewise.privacy.spend import PrivacyEvent


def _build(setting: MechanismSetting, *, clip_l2: float, sample_rate: float) -> BuiltMechanism:
    """Build noise of z times the clip of one block's gradient, in every step.

    A step takes each block with probability ``sample_rate``.

    Raises:
        CompositionError: E-WEIGHT for a weight, which would count blocks, and E-PRECISION as ``grid.fit_noise_grid``.
    """
    rules.refuse_record_weights(any(WEIGHT in space.head for space in setting.before))

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        # Devices noise their steps on this grid. With this room int64 holds the sum of 2^20 records.
        grid.fit_noise_grid('dp.unit = "example"', z, clip_l2, setting.spec.dim, largest=2.0**10 * clip_l2)
        return [], []

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        one = PrivacyEvent("gaussian", "add_remove", z=z, sampling="poisson", rate=sample_rate,
                    unit="example", steps=setting.steps)  # fmt: skip
        return (one,) * len(setting.before)

    def card(z: float, after: Space) -> MechanismSentences:
        return MechanismSentences(
            f"each device in each step, {z:.4g} times the clip of {clip_l2:g} of one block's gradient",
            unit="block of text of one device, in all rounds",
            adjacency="one block is on the device or not, while the number of blocks is public",
            sampling=f"each step takes each block with probability {sample_rate:g}, unknown to others",
            blocks=" and for the n blocks of text on them, counted before the first step",
        )

    return BuiltMechanism(ending, events, card)


# Neighbours differ in one block, and the noise is in the steps. The fold's adjacency is that of devices.
MECHANISM = Mechanism(
    "example",
    "local_dp",
    Noiser.STEPS,
    "every step on a device is noised: what it sends says no more of one block of its text than epsilon allows",
    _build,
    chosen={"unit": "example"},
    required=("sample_rate",),
)
