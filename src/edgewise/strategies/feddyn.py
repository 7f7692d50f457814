"""FedDyn: changes every device's loss so that all losses have their minimum where the mean loss has its own."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt

from edgewise.core.part import Doc, part
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors

_F = np.float32


@part
def feddyn(
    population: int,
    alpha: Annotated[
        float, Gt(0), Doc("strength of the pull towards the round's model; 0.01 to 0.1 in practice")
    ] = 0.1,
) -> Strategy:
    """Regularise every device's loss by a linear term that the device learns over its rounds (FedDyn).

    With h_i kept by the device and h by the server, N devices of which S contribute, D_i = y_i - w:

        y_i = argmin  loss_i(y) - <h_i, y> + alpha / 2 ||y - w||^2,      so that g += alpha (y - w) - h_i
        h_i -= alpha D_i;  h -= alpha |S| / N mean_S(D_i);  w += mean_S(D_i) - h / alpha

    The server keeps h / alpha, which is as long as an update. Only the update travels. A device keeps h_i, 4 bytes a
    parameter.

    Args:
        population: N.
        alpha: strength of the pull. A low one converges faster and less reliably. Rates and steps must suffice for
            local minima.
    Raises:
        RecipeError: E-VALUE. ``compile`` refuses plans that do not fit: noise, which would add up in h, parts of the
            model that take turns, and merges that give no mean.
    Guarantees:
        In a first round the gradients are FedProx's with mu = alpha.
    Edge cases:
        The norm of h grows if devices take part rarely or do not come near a minimum. The model then drifts away.
        ``weigh`` weighs D_i, in h too. Other optimizers than SGD solve the same local problem. A device that lost its
        memory starts from h_i = 0, and h keeps the share of its old one.
    Source: Acar et al. 2021, arXiv:2111.04263, algorithm 1.
    """

    def shift(memory: Vectors, given: Vectors, work: LocalWork) -> Vector:
        return -memory["h"]

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        return ClientUpdate(x, memory={"h": memory["h"] - _F(alpha) * x})

    def init(params: Vector) -> State:
        return State(params, {"h": np.zeros_like(params)})

    def apply(state: State, aggregate: Aggregate) -> State:
        h = state.slots["h"] - _F(aggregate.n / population) * aggregate.mean  # over alpha
        return State(state.params + aggregate.mean - h, {"h": h}, state.round + 1)

    says = (
        "adds the mean update to the model, and a correction that it accumulates over all rounds; devices are pulled "
        f"towards the round's model with strength {alpha:g} and correct their gradients by a vector of their own"
    )
    client = Client(pull=alpha, shift=shift, finish=finish, memory=("h",))
    return Strategy(f"feddyn({alpha:g})", says, init, apply, client)
