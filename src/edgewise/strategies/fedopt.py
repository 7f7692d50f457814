"""The FedOpt family: the mean update D is a pseudo-gradient for a server optimizer. With w the model:

    FedAvg      w += lr D
    FedAvgM     m = b m + D; w += lr m, or with Nesterov w += lr (D + b m)     (Nesterov .7/.9 is DiLoCo's outer step)
    FedAdam     m = b1 m + (1-b1) D; v = b2 v + (1-b2) D^2;               w += lr m / (sqrt v + tau)
    FedYogi     m likewise;          v = v - (1-b2) D^2 sign(v - D^2);    w += lr m / (sqrt v + tau)
    FedAdagrad  v += D^2;                                                 w += lr D / (sqrt v + tau)

There is no bias correction; m_0 = 0 and v_0 = tau^2 as in the paper (Google's code starts at 0). The step of FedAvgM
tends to lr / (1 - b) times D: lower lr when b rises. All arithmetic is float32, coordinate by coordinate, so equal
inputs give equal bits. A round whose weights are all zero has D = 0: momentum still moves the model.
Source: Reddi et al. 2021, arXiv:2003.00295, algorithms 1 and 2; Hsu et al. 2019, arXiv:1909.06335 (FedAvgM); Douillard
et al. 2023, arXiv:2311.08105 (DiLoCo).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgewise.core import demand
from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy

_F = np.float32
_BLOCK = 1 << 16  # coordinates
Second = Callable[[Vector, Vector], Vector]  # v and D^2 -> the next v


def _by_blocks(step: Callable[..., tuple[Vector, ...]], w: Vector, d: Vector, *slots: Vector) -> tuple[Vector, ...]:
    """``step(w, d, *slots)``, which gives the next of ``w`` and of ``slots`` coordinate by coordinate, a block at a
    time: nothing of the length of the model is held but what goes in and what comes out."""
    out = tuple(np.empty_like(x) for x in (w, *slots))
    for i in range(0, w.size, _BLOCK):
        for x, part in zip(out, step(*(x[i : i + _BLOCK] for x in (w, d, *slots))), strict=True):
            x[i : i + _BLOCK] = part
    return out


def fedavg(lr: float = 1.0) -> Strategy:
    """w += lr D; lr 1 is plain averaging. Raises RecipeError(E-VALUE) unless lr > 0."""
    demand.positive("fedavg: lr", lr)

    def apply(state: State, aggregate: Aggregate) -> State:
        (params,) = _by_blocks(lambda w, d: (w + _F(lr) * d,), state.params, aggregate.mean)
        return State(params, {}, state.round + 1)

    return Strategy(f"fedavg({lr:g})", State, apply)


def fedavgm(lr: float, momentum: float = 0.9, nesterov: bool = False) -> Strategy:
    """m = b m + D; w += lr m, or w += lr (D + b m) with Nesterov: torch.optim.SGD on the gradient -D.

    Raises RecipeError(E-VALUE) unless lr > 0 and 0 <= momentum <= 1.
    """
    demand.positive("fedavgm: lr", lr)
    demand.between("fedavgm: momentum", momentum, 0.0, 1.0)
    b = _F(momentum)

    def init(params: Vector) -> State:
        return State(params, {"m": np.zeros_like(params)})

    def step(w: Vector, d: Vector, m: Vector) -> tuple[Vector, ...]:
        m = b * m + d
        return w + _F(lr) * (d + b * m if nesterov else m), m

    def apply(state: State, aggregate: Aggregate) -> State:
        params, m = _by_blocks(step, state.params, aggregate.mean, state.slots["m"])
        return State(params, {"m": m}, state.round + 1)

    return Strategy(f"fedavgm({lr:g}, {momentum:g}{', nesterov' if nesterov else ''})", init, apply)


def fedadam(lr: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Strategy:
    """Adam without bias correction, v_0 = tau^2. Raises RecipeError(E-VALUE) on a parameter out of range."""

    def second(v: Vector, squared: Vector) -> Vector:
        return _F(beta2) * v + _F(1.0 - beta2) * squared

    return _adaptive("fedadam", second, lr, beta1, beta2, tau)


def fedyogi(lr: float = 1e-2, beta1: float = 0.9, beta2: float = 0.99, tau: float = 1e-3) -> Strategy:
    """Yogi: v moves towards D^2 by at most (1 - b2) D^2, v_0 = tau^2. Raises RecipeError(E-VALUE)."""

    def second(v: Vector, squared: Vector) -> Vector:
        step: Vector = _F(1.0 - beta2) * squared * np.sign(v - squared)
        return v - step

    return _adaptive("fedyogi", second, lr, beta1, beta2, tau)


def fedadagrad(lr: float = 3e-2, tau: float = 1e-3) -> Strategy:
    """v += D^2; w += lr D / (sqrt v + tau); no momentum, v_0 = tau^2. Raises RecipeError(E-VALUE)."""

    def second(v: Vector, squared: Vector) -> Vector:
        return v + squared

    return _adaptive("fedadagrad", second, lr, 0.0, 0.0, tau)


def _adaptive(name: str, second: Second, lr: float, beta1: float, beta2: float, tau: float) -> Strategy:
    demand.positive(f"{name}: lr", lr)
    demand.positive(f"{name}: tau", tau)
    demand.between(f"{name}: beta1", beta1, 0.0, 1.0)
    demand.between(f"{name}: beta2", beta2, 0.0, 1.0)

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

    return Strategy(f"{name}({lr:g})", init, apply)
