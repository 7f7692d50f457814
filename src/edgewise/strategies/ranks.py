"""Devices of unequal rank: each trains the first columns of a shared adapter, and a column is the mean over those.

    strategy = of_ranks(strategy, spec, (4, 16))
    strategy.apply(state, aggregate)         # column 9 of B: mean over the devices of rank 16

With A fixed and shared, device i of rank r_i trains B[:, :r_i]. For column c, with weights w_i,

    mean_c = sum_i w_i B_i[:, c] / sum_{r_i > c} w_i

The numerator is the round's sum. Columns between two ranks have one denominator, so one scalar a rank travels: the
share of the weight at devices of that rank or more, exact, in the head of the update. A sum that hides updates hides
it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edgewise.core.factors import columns
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Spec, Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors


def scalar(rank: int) -> str:
    """Name the scalar of the devices of ``rank`` or more."""
    return f"rank_{rank}"


def of_ranks(
    inner: Strategy, spec: Spec, ranks: tuple[int, ...], shares: Mapping[int, float] | None = None
) -> Strategy:
    """Let ``inner`` step along the mean of each column over the devices that trained it.

    Args:
        inner: a strategy whose client half keeps and sends no vectors.
        spec: layout of the trained parameters.
        ranks: all ranks of devices, increasing. Every device has the first one or more.
        shares: rank -> public share of the weight at devices of that rank or more. Fixed denominators for updates with
            noise, whose devices send no scalars. None: devices send them.
    Guarantees:
        ``inner`` itself where all devices have one rank. With equal weights and no noise the step is the mean of each
        column over the devices that trained it, to float tolerance.
    Edge cases:
        A column that no device of the round trained does not move. A coordinate outside the factors is a mean over all.
    """
    if len(ranks) == 1:
        return inner
    column = columns(spec)
    # 0: all devices trained it. k: those of rank ranks[k] or more.
    level = np.searchsorted(ranks, column, "right").astype(np.uint16)
    names = () if shares is not None else tuple(scalar(rank) for rank in ranks[1:])

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        done = inner.client.finished(x, memory, given, work)
        own = {scalar(rank): float(work.rank >= rank) for rank in ranks[1:]} if names else {}
        sent = np.where(column < work.rank, done.x, np.float32(0.0))
        return replace(done, x=sent, head={**done.head, **own})

    def apply(state: State, aggregate: Aggregate) -> State:
        head = aggregate.head if shares is None else {scalar(rank): share for rank, share in shares.items()}
        denominators = np.array([1.0, *(head[scalar(rank)] for rank in ranks[1:])])
        factors = np.divide(1.0, denominators, out=np.zeros_like(denominators), where=denominators > 0.0)
        return inner.apply(state, replace(aggregate, mean=aggregate.mean * factors.astype(np.float32)[level]))

    client: Client = replace(inner.client, finish=finish, head=(*inner.client.head, *names))
    says = f"{inner.says}; a column of the adapters is the mean over the devices whose rank reaches it"
    return inner._replace(
        name=f"{inner.name} of ranks {', '.join(map(str, ranks))}", says=says, apply=apply, client=client
    )
