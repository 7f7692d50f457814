"""FedNova: normalises updates, so that devices with more local steps do not count more."""

from __future__ import annotations

import numpy as np

from edgewise.core.part import part
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors
from edgewise.strategies.fedopt import ServerLr, factor_words, fedavg

STEPS = "steps"  # the head scalar a_i / a


def effective_steps(steps: int, momentum: float) -> float:
    """Compute ||a||_1, the number of plain SGD steps that a device's steps equal if gradients stay the same.

    K without momentum, else (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho).
    """
    if not momentum:
        return float(steps)
    return (steps - momentum * (1.0 - momentum**steps) / (1.0 - momentum)) / (1.0 - momentum)


@part
def fednova(lr: ServerLr = 1.0) -> Strategy:
    """Average updates per local step, then go as many steps as devices took on average (FedNova).

    With weights p_i and a_i = ``effective(K_i)``:

        tau = sum p_i a_i;  D = tau sum p_i D_i / a_i;  w += lr D

    A device sends D_i a / a_i, with a = ``effective(K)`` of the largest number of steps K, so that its update does not
    become shorter. It also sends the scalar a_i / a exactly. The server multiplies the two means. AdamW and Muon count
    as a_i = K_i.

    Raises:
        RecipeError: E-VALUE. ``compile`` refuses rounds of equal steps, in which this is FedAvg, and plans that do not
            fit: noise, which would have to cover the scalar too, and merges that give no mean.
    Guarantees:
        If all devices take K steps, this is FedAvg to the bit.
    Edge cases:
        The number of steps tells the server roughly how much data a device has, unless secure aggregation hides it.
        ``clip`` sees the longer update, so choose a clip above the length that K steps reach.
    Source: Wang et al. 2020, arXiv:2007.07481, equations 7 and 11, and section 4 for momentum.
    """
    average = fedavg(lr)

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        share = effective_steps(work.steps, work.momentum) / effective_steps(work.most, work.momentum)
        return ClientUpdate(x if share == 1.0 else x / np.float32(share), head={STEPS: share})

    def apply(state: State, aggregate: Aggregate) -> State:
        mean = np.float32(aggregate.head[STEPS]) * aggregate.mean
        return average.apply(state, Aggregate(mean, aggregate.head, aggregate.n, aggregate.weight))

    why = "it corrects for devices that take different numbers of steps"
    says = (
        f"moves the model by {factor_words(lr)}the mean update per local step, as many steps as devices took on average"
    )
    return Strategy(f"fednova({lr:g})", says, State, apply, Client(finish=finish, head=(STEPS,), uneven=why))
