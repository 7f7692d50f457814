"""Momentum on devices: each sends a running mean of its updates, which is steadier than the update of one round."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt

from edgewise.core.part import Doc, part
from edgewise.core.vector import Vector
from edgewise.strategies.base import Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors
from edgewise.strategies.fedopt import ServerLr, fedavg

_F = np.float32


@part
def momentum(
    beta: Annotated[
        float, Gt(0), Lt(1), Doc("share of the running mean that stays each round; 0.9 in the paper")
    ] = 0.9,
    lr: ServerLr = 1.0,
) -> Strategy:
    """Average running means of updates that devices keep (worker momentum), for merges that compare devices.

    With x_i what device i trained, and m_i zeros before its first round:

        m_i' = beta m_i + (1 - beta) x_i  travels;  w += lr merge_i(m_i')

    An update of one round is part what the device wants and part chance. The running mean averages the chance away, so
    honest devices are more alike, and liars who hide within what honest devices differ by can move less. This is for
    ``robust_mean`` and ``centred_clip``. With a sum it is plain momentum, which the server can do alone: fedavgm.

    A device keeps m_i, 4 bytes a parameter. Nothing more travels.

    Args:
        beta: the share that stays. The first 1 / (1 - beta) rounds move the model less than they would without.
        lr: eta of the server.
    Raises:
        RecipeError: E-VALUE. ``compile`` refuses noise, since m_i holds earlier rounds, parts of the model that take
            turns, and the adaptive codec behind masks.
    Edge cases: a device that takes part in few rounds sends an old mean with its new update. Its m_i changes only when
        the server has used its contribution.
    Source: Karimireddy et al. 2021, arXiv:2012.10333, section 4. The paper sends gradients of one step, and this sends
        updates of a round.
    """

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        m: Vector = _F(beta) * memory["m"] + _F(1.0 - beta) * x
        return ClientUpdate(m, memory={"m": m})

    average = fedavg(lr)
    says = f"{average.says}; devices send a running mean of their updates, of which {beta:g} stays each round"
    client = Client(finish=finish, memory=("m",), compared=True)
    return average._replace(name=f"momentum({beta:g}, {lr:g})", says=says, client=client)
