"""The FedOpt family: the mean update D is a pseudo-gradient for a server optimizer. With w the model:

    FedAvg      w += lr D
    FedAvgM     m = b m + D; w += lr m, or with Nesterov w += lr (D + b m)     (Nesterov .7/.9 is DiLoCo's outer step)
    FedAdam     m = b1 m + (1-b1) D; v = b2 v + (1-b2) D^2;               w += lr m / (sqrt v + tau)
    FedYogi     m likewise;          v = v - (1-b2) D^2 sign(v - D^2);    w += lr m / (sqrt v + tau)
    FedAdagrad  v += D^2;                                                 w += lr D / (sqrt v + tau)

There is no bias correction. m_0 = 0 and v_0 = tau^2 as in the paper (Google's code starts at 0). The step of FedAvgM
tends to lr / (1 - b) times D, so lower lr when b rises. All arithmetic is float32, coordinate by coordinate, so equal
inputs give equal bits. A round whose weights are all zero has D = 0, and momentum still moves the model.

    strategy = fedadam(lr=0.01)
    state = strategy.apply(strategy.init(params), aggregate)

Source: Reddi et al. 2021, arXiv:2003.00295, algorithms 1 and 2. Hsu et al. 2019, arXiv:1909.06335 (FedAvgM). Douillard
et al. 2023, arXiv:2311.08105 (DiLoCo).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from edgewise.core.part import Doc, part
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy

_F = np.float32
_BLOCK = 1 << 16  # coordinates
ServerLr = Annotated[float, Gt(0), Doc("server learning rate")]
Beta = Annotated[float, Ge(0), Lt(1), Doc("share of the running mean that stays each round")]
Tau = Annotated[float, Gt(0), Doc("added to the root of v, so that a step stays finite; larger is less adaptive")]
Second = Callable[[Vector, Vector], Vector]  # v and D^2 -> the next v


def _by_blocks(step: Callable[..., tuple[Vector, ...]], w: Vector, d: Vector, *slots: Vector) -> tuple[Vector, ...]:
    """Compute ``step(w, d, *slots)`` a block at a time.

    It gives the next ``w`` and ``slots``, coordinate by coordinate.

    Beside inputs and outputs, nothing as long as the model is held in memory.
    """
    out = tuple(np.empty_like(x) for x in (w, *slots))
    for i in range(0, w.size, _BLOCK):
        for x, piece in zip(out, step(*(x[i : i + _BLOCK] for x in (w, d, *slots))), strict=True):
            x[i : i + _BLOCK] = piece
    return out


def factor_words(share: float) -> str:
    """Write a factor for a sentence: ``"0.5 of "``, or nothing for 1."""
    return "" if share == 1.0 else f"{share:g} of "


@part
def fedavg(lr: Annotated[float, Gt(0), Doc("server learning rate; 1 = the average itself")] = 1.0) -> Strategy:
    """Average the updates: w += lr D.

    Raises RecipeError(E-VALUE).
    """

    def apply(state: State, aggregate: Aggregate) -> State:
        (params,) = _by_blocks(lambda w, d: (w + _F(lr) * d,), state.params, aggregate.mean)
        return State(params, {}, state.round + 1)

    return Strategy(f"fedavg({lr:g})", f"adds {factor_words(lr)}the mean update to the model", State, apply)


@part
def fedavgm(
    lr: ServerLr = 0.3,
    momentum: Annotated[float, Ge(0), Lt(1), Doc("b, the share of the last step that is added to the next")] = 0.9,
    nesterov: Annotated[bool, Doc("look one step ahead; lr 0.4 and momentum 0.8 then fit well")] = False,
) -> Strategy:
    """Average with momentum on the server: m = b m + D; w += lr m, or w += lr (D + b m) with Nesterov.

    This equals torch.optim.SGD on the gradient -D. Raises RecipeError(E-VALUE).
    """
    b = _F(momentum)

    def init(params: Vector) -> State:
        return State(params, {"m": np.zeros_like(params)})

    def step(w: Vector, d: Vector, m: Vector) -> tuple[Vector, ...]:
        m = b * m + d
        return w + _F(lr) * (d + b * m if nesterov else m), m

    def apply(state: State, aggregate: Aggregate) -> State:
        params, m = _by_blocks(step, state.params, aggregate.mean, state.slots["m"])
        return State(params, {"m": m}, state.round + 1)

    ahead = " and looks one step ahead" if nesterov else ""
    kept = f"keeps {momentum:g} of itself each round{ahead}"
    says = f"moves the model by {factor_words(lr)}a sum of mean updates, which {kept}"
    return Strategy(f"fedavgm({lr:g}, {momentum:g}{', nesterov' if nesterov else ''})", says, init, apply)


@part
def fedadam(lr: ServerLr = 1e-2, beta1: Beta = 0.9, beta2: Beta = 0.99, tau: Tau = 1e-3) -> Strategy:
    """Adam on the server, without bias correction, v_0 = tau^2.

    Raises RecipeError(E-VALUE).
    """

    def second(v: Vector, squared: Vector) -> Vector:
        return _F(beta2) * v + _F(1.0 - beta2) * squared

    return _adaptive_server_optimizer("fedadam", "the running mean of their squares", second, lr, beta1, beta2, tau)


@part
def fedyogi(lr: ServerLr = 1e-2, beta1: Beta = 0.9, beta2: Beta = 0.99, tau: Tau = 1e-3) -> Strategy:
    """Yogi on the server: v moves towards D^2 by at most (1 - b2) D^2, v_0 = tau^2.

    Raises RecipeError(E-VALUE).
    """

    def second(v: Vector, squared: Vector) -> Vector:
        step: Vector = _F(1.0 - beta2) * squared * np.sign(v - squared)
        return v - step

    return _adaptive_server_optimizer(
        "fedyogi", "a sum that follows their squares step by step", second, lr, beta1, beta2, tau
    )


@part
def fedadagrad(lr: ServerLr = 3e-2, tau: Tau = 1e-3) -> Strategy:
    """Adagrad on the server: v += D^2; w += lr D / (sqrt v + tau); no momentum, v_0 = tau^2.

    Raises RecipeError(E-VALUE).
    """

    def second(v: Vector, squared: Vector) -> Vector:
        return v + squared

    return _adaptive_server_optimizer("fedadagrad", "the sum of all their squares", second, lr, 0.0, 0.0, tau)


def _adaptive_server_optimizer(
    name: str, squares: str, second: Second, lr: float, beta1: float, beta2: float, tau: float
) -> Strategy:
    """Make a server optimizer with a second moment of its own."""

    def init(params: Vector) -> State:
        slots = {"v": np.full_like(params, _F(tau) * _F(tau))}
        return State(params, {"m": np.zeros_like(params), **slots} if beta1 else slots)

    def step(w: Vector, d: Vector, v: Vector, *first: Vector) -> tuple[Vector, ...]:
        m = _F(beta1) * first[0] + _F(1.0 - beta1) * d if first else d
        v = second(v, np.square(d))
        root: Vector = np.sqrt(v)
        return w + _F(lr) * m / (root + _F(tau)), v, *((m,) if first else ())

    def apply(state: State, aggregate: Aggregate) -> State:
        names = ("v", "m") if beta1 else ("v",)
        old = (state.slots[name] for name in names)
        params, *new = _by_blocks(step, state.params, aggregate.mean, *old)
        return State(params, dict(zip(names, new, strict=True)), state.round + 1)

    mean = "the running mean of updates" if beta1 else "the mean update of a round"
    says = f"moves every coordinate by {factor_words(lr)}{mean}, divided by the root of {squares}"
    return Strategy(f"{name}({lr:g})", says, init, apply)
