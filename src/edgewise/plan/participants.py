"""Devices of a simulation that are left out of the rounds, to measure models on devices that never trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgewise.core.keys import derive, generator, root
from edgewise.core.training import DeviceId
from edgewise.plan.recipe.recipe import Recipe


class PlannedParticipants(NamedTuple):
    """The devices of a simulation, each group in order.

    Attributes:
        seen: the population of the rounds.
        unseen: ``compare.unseen`` of all devices. The seed draws them.
    """

    seen: tuple[DeviceId, ...]
    unseen: tuple[DeviceId, ...]


def participants(recipe: Recipe, devices: Sequence[DeviceId]) -> PlannedParticipants:
    """Split all devices of a recipe. At least one stays in the rounds."""
    count = min(round(recipe.compare.unseen * len(devices)), len(devices) - 1)
    if count < 1:
        return PlannedParticipants(tuple(devices), ())
    order = generator(derive(root(recipe.seed), "unseen")).permutation(len(devices))
    out = {devices[int(i)] for i in order[:count]}
    return PlannedParticipants(tuple(d for d in devices if d not in out), tuple(d for d in devices if d in out))
