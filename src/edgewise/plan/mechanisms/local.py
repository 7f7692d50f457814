"""Local noise: every device adds Gaussian noise to its own update. The guarantee holds whatever the server does.

    update + N(0, (z C)^2)

Replacing an update moves it by up to two clips, so the accountant counts z / 2.
Source: Dwork and Roth 2014, appendix A; ``privacy.noise.local_noise``.
"""

from __future__ import annotations

from edgewise.core.space import Space
from edgewise.core.stage import Post, Stage
from edgewise.plan.mechanisms.base import (
    BuiltMechanism,
    Mechanism,
    MechanismSentences,
    MechanismSetting,
    mechanism_clip_words,
    mechanism_covered_stages,
)
from edgewise.plan.promise import Noiser
from edgewise.privacy.noise import local_noise
from edgewise.privacy.spend import PrivacyEvent


def build_local_mechanism(setting: MechanismSetting, *, clip_l2: float, tensor_l2: float) -> BuiltMechanism:
    """Build noise of z times the clip, on each update. Raises CompositionError as ``covered`` and ``local_noise``."""
    bounds = mechanism_covered_stages(setting, clip_l2, tensor_l2)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return [*bounds, local_noise(z)], []

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        return (PrivacyEvent("gaussian", setting.before[0].adjacency, z=z / 2.0),) * len(setting.before)

    more = " and of the metrics behind it together" if len(bounds) > 1 else ""

    def card(z: float, after: Space) -> MechanismSentences:
        return MechanismSentences(f"each device, {z:.4g} times {mechanism_clip_words(clip_l2, tensor_l2)}{more}")

    return BuiltMechanism(ending, events, card)


MECHANISM = Mechanism(
    "local",
    "local_dp",
    Noiser.DEVICE,
    "every device adds noise to its own update, which says no more of its text than epsilon allows, whatever the "
    "server does",
    build_local_mechanism,
    lambda kind: "replace_one",
    before_quantizers=True,
    values_only=True,
)
