"""FedProx: plain averaging on the server, with devices that are pulled towards the round's model."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt

from edgewise.core.part import Doc, part
from edgewise.strategies.base import Strategy
from edgewise.strategies.client import Client
from edgewise.strategies.fedopt import ServerLr, fedavg


@part
def fedprox(
    mu: Annotated[float, Gt(0), Doc("strength of the pull towards the round's model; 0.001 to 1 in practice")] = 0.01,
    lr: ServerLr = 1.0,
) -> Strategy:
    """Average the updates of devices that are pulled towards the round's model (FedProx).

    Devices add ``mu (w_i - w)`` to the gradient, before gradient clipping.

    Raises:
        RecipeError: E-VALUE.
    Source: Li et al. 2020, arXiv:1812.06127, algorithm 2.
    """
    average = fedavg(lr)
    says = f"{average.says}; devices are pulled towards the round's model with strength {mu:g}"
    return average._replace(name=f"fedprox({mu:g}, {lr:g})", says=says, client=Client(pull=mu))
