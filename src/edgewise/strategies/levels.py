"""Devices that train more or less of the model: a coordinate's mean is over the devices that trained it.

    strategy = step_by_levels(strategy, level, ("depth_6",), reaches, None, "2 or 6 blocks")
    strategy.apply(state, aggregate)         # level 1: mean over the devices that reach it

Devices that reach level k train the coordinates of level k. They are fewer the higher it is. With weights w_i,

    mean_k = sum_i w_i x_i / sum_{i reaches k} w_i

The numerator is the round's sum. So one scalar a level travels: the share of the weight at devices that reach it,
exact, in the head of the update. A sum that hides updates hides it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors


def step_by_levels(
    inner: Strategy,
    level: NDArray[np.uint16],
    names: tuple[str, ...],
    reaches: Callable[[LocalWork], Sequence[bool]],
    shares: Sequence[float] | None,
    what: str,
    says: str,
) -> Strategy:
    """Let ``inner`` step along the mean of each coordinate over the devices that trained it.

    Args:
        inner: a strategy whose client half keeps and sends no vectors.
        level: uint16[d], the level of each coordinate. All devices reach 0.
        names: names of the scalars of the levels 1, 2, ...
        reaches: a device's work -> for the levels 1, 2, ... whether it reaches them. It also reaches those below.
        shares: public shares of the weight at devices that reach the levels 1, 2, ... Fixed denominators for updates
            with noise, whose devices send no scalars. None: devices send them.
        what: the devices' differences, for the name of the strategy.
        says: the rule of the mean, in words.
    Guarantees:
        With equal weights and no noise the step is the mean of each coordinate over the devices that trained it, to
        float tolerance.
    Edge cases:
        A coordinate that no device of the round trained does not move.
    """

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        done, reached = inner.client.finished(x, memory, given, work), reaches(work)
        own = dict(zip(names, map(float, reached), strict=True)) if shares is None else {}
        sent = np.where(level <= sum(reached), done.x, np.float32(0.0))
        return replace(done, x=sent, head={**done.head, **own})

    def apply(state: State, aggregate: Aggregate) -> State:
        found = [aggregate.head[name] for name in names] if shares is None else list(shares)
        denominators = np.array([1.0, *found])
        factors = np.divide(1.0, denominators, out=np.zeros_like(denominators), where=denominators > 0.0)
        return inner.apply(state, replace(aggregate, mean=aggregate.mean * factors.astype(np.float32)[level]))

    head = (*inner.client.head, *names) if shares is None else inner.client.head
    client: Client = replace(inner.client, finish=finish, head=head)
    return inner._replace(name=f"{inner.name} of {what}", says=f"{inner.says}; {says}", apply=apply, client=client)
