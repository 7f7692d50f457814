"""Central noise: the server adds Gaussian noise to the sum of a round.

    release = sum + N(0, (z Delta)^2),   Delta: the largest move of the sum by one device
    (``privacy.noise.noised_neighbour_distance``)

Every round has noise of its own. Poisson sampling amplifies the epsilon against readers of the models.
Source: McMahan et al. 2018, arXiv:1710.06963; Andrew et al. 2021, arXiv:1905.03871 (the clip that follows).
"""

from __future__ import annotations

from dataclasses import replace
from math import inf

from edgewise.core.errors import CompositionError
from edgewise.core.space import Adjacency, Kind, Space
from edgewise.core.stage import Post, Stage
from edgewise.plan.mechanisms.base import (
    BuiltMechanism,
    Mechanism,
    MechanismSentences,
    MechanismSetting,
    mechanism_clip,
    mechanism_clip_words,
)
from edgewise.plan.promise import Noiser
from edgewise.privacy.adaptive import adaptive_clip as following_clip
from edgewise.privacy.noise import noise
from edgewise.privacy.spend import PrivacyEvent

SUMMARY = (
    "the server adds noise to the sum: readers of the models learn no more of a device than epsilon allows, the server "
    "itself is trusted"
)


def check_bounds(setting: MechanismSetting, clip_l2: float, tensor_l2: float, adaptive_clip: bool = False) -> bool:
    """Tell whether the recipe's stages leave the clip to the mechanism, which is so where they quantize nothing.

    Raises:
        CompositionError: E-NOISE-NOCLIP where they quantize an update without a clip, E-NOT-REAL where a clip other
            than ``clip`` would follow a quantizer.
    """
    real = all(space.grid.kind is Kind.REAL for space in setting.before)
    if not real and any(space.l2 == inf for space in setting.before):
        raise CompositionError(
            "E-NOISE-NOCLIP",
            "the stages quantize what nothing has clipped.",
            f"put clip with l2 = {clip_l2:g} before quantize.",
        )
    if (adaptive_clip or tensor_l2) and not real:
        what = "an adaptive clip" if adaptive_clip else "dp.tensor_l2"
        raise CompositionError("E-NOT-REAL", f"{what} stands behind a quantizer.", "quantize nothing, or use clip.")
    return real


def _build(setting: MechanismSetting, *, clip_l2: float, tensor_l2: float, adaptive_clip: bool) -> BuiltMechanism:
    """Build noise of z times the sensitivity, on each round's sum.

    Raises:
        CompositionError: as ``check_bounds``, ``bounded`` and ``privacy.noise``.
    """
    real, sampling = check_bounds(setting, clip_l2, tensor_l2, adaptive_clip), setting.sampling
    bound = mechanism_clip(setting.spec, clip_l2, tensor_l2)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        if adaptive_clip:
            return [following_clip(clip_l2, z, sampling.expected)], [noise(z)]
        return ([bound] if real else []), [noise(z)]

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        event = PrivacyEvent("gaussian", setting.before[0].adjacency, z=z)
        if sampling.kind == "poisson":
            event = replace(event, sampling="poisson", rate=sampling.rate)
        return (event,) * len(setting.before)

    def card(z: float, after: Space) -> MechanismSentences:
        how = mechanism_clip_words(clip_l2, tensor_l2)
        if adaptive_clip:
            how = f"a clip that follows the updates, from {clip_l2:g}"
        moved = f"the server, {z:.4g} times how far one device can move the sum, by {how}"
        return MechanismSentences(moved, against_server=False)

    return BuiltMechanism(ending, events, card)


def mechanism_adjacency(kind: str) -> Adjacency:
    """Return the relation of neighbouring data sets. Participation is public, except under Poisson sampling."""
    return "add_remove" if kind == "poisson" else "zero_out"


MECHANISM = Mechanism("central", "central_dp", Noiser.SERVER, SUMMARY, _build, mechanism_adjacency, expected=True)
