"""FedProx: plain averaging on the server; devices are pulled towards the round's model."""

from __future__ import annotations

from edgewise.core import demand
from edgewise.strategies.base import Strategy
from edgewise.strategies.fedopt import fedavg


def fedprox(mu: float, lr: float = 1.0) -> Strategy:
    """FedAvg whose devices add ``mu (w_i - w)`` to the gradient, before gradient clipping.

    Args:
        mu: strength of the pull, above 0 (0.001 to 1 in practice). lr: server learning rate.
    Raises:
        RecipeError(E-VALUE).
    Source: Li et al. 2020, arXiv:1812.06127, algorithm 2.
    """
    demand.positive("fedprox: mu", mu)
    return fedavg(lr)._replace(name=f"fedprox({mu:g}, {lr:g})", prox_mu=mu)
