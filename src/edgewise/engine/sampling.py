"""Sampling of a cohort. ``plan.sampling.Sampling.earns`` states the privacy amplification of each kind."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.keys import Key, derive, generator
from edgewise.core.training import DeviceId
from edgewise.crypto import prg
from edgewise.plan.sampling import Sampling


def draw(sampling: Sampling, population: Sequence[DeviceId], key: Key, round: int) -> tuple[DeviceId, ...]:
    """Draw the devices invited to a round, in population order.

    ``all``: every device. ``fixed``: ``sampling.invite`` devices without replacement, uniformly. ``poisson``: each
    device independently with probability ``sampling.rate``. This cohort may be empty. ``cyclic``: the devices are dealt
    once, at random, into ``sampling.groups`` groups, and round r asks group r mod their number.

    Args:
        population: sorted device ids, ``len == sampling.population``.
        key: 32 bytes (``Coordinator.sampling_key``). The draw depends on it and the round only.
    """
    if sampling.kind == "all":
        return tuple(population)
    if sampling.kind == "cyclic":
        order = generator(derive(key, "groups")).permutation(len(population))
        return tuple(population[i] for i in sorted(order[round % sampling.groups :: sampling.groups].tolist()))
    cohort = derive(key, "cohort", round)
    if sampling.kind == "fixed":
        chosen = generator(cohort).choice(len(population), sampling.invite, replace=False)
    else:  # Sampling amplifies privacy only where nobody can guess the draw, so the coins are cryptographic.
        chosen = prg.random_coins(cohort, len(population), sampling.rate).nonzero()[0]
    return tuple(population[i] for i in sorted(chosen.tolist()))
