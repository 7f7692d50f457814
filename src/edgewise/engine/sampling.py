"""Drawing a cohort. What each way earns for privacy is stated by ``plan.compile.Sampling.earns``."""

from __future__ import annotations

from collections.abc import Sequence

from edgewise.core.keys import Key, derive, generator
from edgewise.core.training import DeviceId
from edgewise.crypto import prg
from edgewise.plan.sampling import Sampling


def draw(sampling: Sampling, population: Sequence[DeviceId], key: Key, round: int) -> tuple[DeviceId, ...]:
    """The devices invited to a round, in population order.

    ``all``: everybody. ``fixed``: ``sampling.invite`` without replacement, uniformly. ``poisson``: each device
    independently with probability ``sampling.rate``; may be empty. ``cyclic``: the devices are dealt once, at random,
    into ``sampling.groups`` groups, and round r asks group r mod their number.

    Args:
        population: sorted device ids, ``len == sampling.population``.
        key: 32 bytes (``Coordinator.sampling_key``); the draw depends on it and the round only.
    """
    if sampling.kind == "all":
        return tuple(population)
    if sampling.kind == "cyclic":
        order = generator(derive(key, "groups")).permutation(len(population))
        return tuple(population[i] for i in sorted(order[round % sampling.groups :: sampling.groups].tolist()))
    cohort = derive(key, "cohort", round)
    if sampling.kind == "fixed":
        chosen = generator(cohort).choice(len(population), sampling.invite, replace=False)
    else:  # privacy is amplified only where nobody can guess the draw
        chosen = prg.coins(cohort, len(population), sampling.rate).nonzero()[0]
    return tuple(population[i] for i in sorted(chosen.tolist()))
