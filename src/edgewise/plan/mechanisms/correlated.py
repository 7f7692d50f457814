"""Correlated noise: the noise of a round takes back part of the noise of earlier rounds. The server adds it to the sum.

All rounds of a run are one release, and the accountant counts a single event (``privacy.matrix``). Cohorts take turns,
so the number of rounds between two of one device is known.
Source: McMahan et al. 2024, arXiv:2404.16706 (buffered linear Toeplitz factorisations).
"""

from __future__ import annotations

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.space import Space
from edgewise.core.stage import Post, Stage
from edgewise.plan.mechanisms.base import (
    BuiltMechanism,
    Mechanism,
    MechanismSentences,
    MechanismSetting,
    mechanism_clip,
    mechanism_clip_words,
)
from edgewise.plan.mechanisms.central import SUMMARY, check_bounds, mechanism_adjacency
from edgewise.plan.promise import Noiser
from edgewise.privacy import matrix, rules
from edgewise.privacy.spend import PrivacyEvent

MOST_ROUNDS = 100_000  # The factorisation of so many takes some seconds.


def _build(setting: MechanismSetting, *, clip_l2: float, tensor_l2: float, buffers: int) -> BuiltMechanism:
    """Build noise of z times the largest move of all the run's sums by one device.

    Raises:
        CompositionError: E-MF-GAP without cohorts that take turns, E-COMBO where parts of the model take turns, and as
            ``check_bounds``.
        RecipeError: E-VALUE for too many rounds.
    """
    rules.refuse_participation_gap(setting.sampling.groups, setting.sampling.kind)
    real = check_bounds(setting, clip_l2, tensor_l2)
    bound = mechanism_clip(setting.spec, clip_l2, tensor_l2)
    if len(setting.before) > 1:
        raise CompositionError(
            "E-COMBO",
            "correlated noise with layers that take turns: a round could not take back what an earlier one added.",
            'dp.noise = "independent", or the same coordinates and clip in all rounds.',
        )
    if setting.rounds > MOST_ROUNDS:
        what = f"correlated noise is worked out round by round, for at most {MOST_ROUNDS} of them."
        raise RecipeError("E-VALUE", what, 'play fewer rounds, or take dp.noise = "independent".')
    blt = matrix.choose_blt(setting.rounds, setting.sampling.groups, setting.rounds_each, buffers)

    def ending(z: float) -> tuple[list[Stage], list[Post]]:
        return ([bound] if real else []), [matrix.correlated_noise(z, blt)]

    def events(z: float) -> tuple[PrivacyEvent, ...]:
        return (matrix.correlated_noise_event(blt, z),)

    def card(z: float, after: Space) -> MechanismSentences:
        moved = f"the server, {z:.4g} times how far one device in all its rounds can move the run's encoded sums, by "
        moved += f"{mechanism_clip_words(clip_l2, tensor_l2)}; rounds take back noise of earlier ones"
        return MechanismSentences(moved, against_server=False)

    return BuiltMechanism(ending, events, card)


MECHANISM = Mechanism(
    "correlated",
    "central_dp",
    Noiser.SERVER,
    SUMMARY,
    _build,
    mechanism_adjacency,
    {"noise": "correlated"},
    expected=True,
)
