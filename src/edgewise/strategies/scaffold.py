"""SCAFFOLD: control variates remove the part of every local step that is particular to the device."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt

from edgewise.core.part import Doc, part
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.client import Client, ClientUpdate, LocalWork, Vectors
from edgewise.strategies.fedopt import factor_words

_F = np.float32


@part
def scaffold(population: int, lr: Annotated[float, Gt(0), Doc("server learning rate")] = 1.0) -> Strategy:
    """Correct every gradient by the difference of two control variates, the server's and the device's (SCAFFOLD).

    With c the server's control variate, c_i the device's, N devices of which S contribute, K_i steps at rate eta:

        y -= eta (g_i(y) - c_i + c),  from y = w
        c_i' = c_i - c + (w - y) / (K_i eta)                                             (option II)
        w += lr mean_S(y_i - w);  c += |S| / N mean_S(c_i' - c_i)

    Control variates travel and are kept multiplied by K eta (``LocalWork.unit``). They are then about as long as
    updates, whatever the rate, and share clips and grids with them. c_i' - c_i travels as the same number of
    coordinates again, and c beside the model, so the bytes double each way. A device keeps c_i, 4 bytes a parameter.

    Args:
        population: N.
        lr: eta_g.
    Raises:
        RecipeError: E-VALUE. ``compile`` refuses plans that do not fit: optimizers other than SGD and momentum, since
            (w - y) / (K eta) is a mean gradient with plain SGD alone, noise, which would add up in c, parts of the
            model that take turns, and merges that give no mean.
    Guarantees:
        With c = c_i = 0 a first round is FedAvg's to the bit. With one device it is plain SGD in all rounds, since c_i
        = c. If all vectors arrive unchanged and every device contributes with the same weight in all rounds, c is the
        weighted mean of all c_i.
    Edge cases:
        ``weigh`` weighs control variates like updates. c then follows the gradient of the weighted loss. With clipped
        gradients, c_i' is between the old variate and the new one. A device that lost its memory starts from c_i = 0,
        and c keeps the share of its old one. With lossy stages, c gets the vector that arrived and c_i the intended
        one. Error feedback makes up for the difference. A cosine schedule changes nothing, because c_i is a gradient
        and depends on no rate.
    Source: Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1.
    """

    def shift(memory: Vectors, given: Vectors, work: LocalWork) -> Vector:
        out: Vector = (given["c"] - memory["c"]) / _F(work.unit)
        return out

    def finish(x: Vector, memory: Vectors, given: Vectors, work: LocalWork) -> ClientUpdate:
        change: Vector = -(given["c"] + _F(work.unit / (work.steps * work.lr)) * x)
        return ClientUpdate(x, beside={"c": change}, memory={"c": memory["c"] + change})

    def init(params: Vector) -> State:
        return State(params, {"c": np.zeros_like(params)})

    def apply(state: State, aggregate: Aggregate) -> State:
        c = state.slots["c"] + _F(aggregate.n / population) * aggregate.beside["c"]
        return State(state.params + _F(lr) * aggregate.mean, {"c": c}, state.round + 1)

    why = "a control variate is (w - y) / (K eta), a mean gradient with plain SGD alone"
    client = Client(shift=shift, finish=finish, memory=("c",), given=("c",), sends=("c",), plain_sgd=why)
    says = f"adds {factor_words(lr)}the mean update to the model; devices correct their gradients by control variates"
    return Strategy(f"scaffold({lr:g})", says, init, apply, client)
