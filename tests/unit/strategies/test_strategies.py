"""Server rules against scalar equations written out again, and against torch.optim for rules that it has."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Vector
from edgewise.strategies.base import State, Strategy
from edgewise.strategies.fedopt import fedadagrad, fedadam, fedavg, fedavgm, fedyogi
from edgewise.strategies.fedprox import fedprox
from edgewise.strategies.zeroth_order import zeroth_order

DIM, ROUNDS = 20, 8
START = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
MEANS = (np.random.default_rng(1).standard_normal((ROUNDS, DIM)) * 0.05).astype(np.float32)


def run(strategy: Strategy, means: np.ndarray = MEANS) -> State:
    state = strategy.init(START)
    for d in means:
        state = strategy.apply(state, Aggregate(d, {}, 4, 4.0))
    return state


Rule = Callable[[float, float, float, float], tuple[float, float, float]]  # w, m, v, D -> w, m, v


def by_hand(rule: Rule, v0: float) -> np.ndarray:
    out = []
    for i in range(DIM):
        w, m, v = float(START[i]), 0.0, v0
        for d in MEANS[:, i]:
            w, m, v = rule(w, m, v, float(d))
        out.append(w)
    return np.array(out)


def avg(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    return w + 0.8 * d, m, v


def heavy_ball(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    m = 0.9 * m + d
    return w + 0.3 * m, m, v


def nesterov(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    m = 0.9 * m + d
    return w + 0.7 * (d + 0.9 * m), m, v


def adam(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    m = 0.9 * m + 0.1 * d
    v = 0.99 * v + 0.01 * d * d
    return w + 0.01 * m / (sqrt(v) + 1e-3), m, v


def yogi(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    m = 0.9 * m + 0.1 * d
    sign = (v > d * d) - (v < d * d)
    v = v - 0.01 * d * d * sign
    return w + 0.01 * m / (sqrt(v) + 1e-3), m, v


def adagrad(w: float, m: float, v: float, d: float) -> tuple[float, float, float]:
    v = v + d * d
    return w + 0.03 * d / (sqrt(v) + 1e-3), m, v


@pytest.mark.parametrize(
    ("strategy", "rule", "v0"),
    [
        (fedavg(0.8), avg, 0.0),
        (fedprox(0.1, lr=0.8), avg, 0.0),
        (zeroth_order(lr=0.8), avg, 0.0),
        (fedavgm(0.3, 0.9), heavy_ball, 0.0),
        (fedavgm(0.7, 0.9, nesterov=True), nesterov, 0.0),
        (fedadam(), adam, 1e-6),
        (fedyogi(), yogi, 1e-6),
        (fedadagrad(), adagrad, 1e-6),
    ],
    ids=lambda v: getattr(v, "name", ""),
)
def test_equations(strategy: Strategy, rule: Rule, v0: float) -> None:
    state = run(strategy)
    np.testing.assert_allclose(state.params, by_hand(rule, v0), rtol=2e-6, atol=1e-6)
    assert state.round == ROUNDS


def test_plain_average_lands_on_the_mean_of_the_devices() -> None:
    devices = START + MEANS
    mean = (devices - START).mean(axis=0)
    state = fedavg().apply(fedavg().init(START), Aggregate(mean, {}, ROUNDS, float(ROUNDS)))
    np.testing.assert_allclose(state.params, devices.mean(axis=0), atol=1e-6)


def test_adam_starts_without_bias_correction() -> None:
    """First step: (1-b1) D / (sqrt(b2 tau^2 + (1-b2) D^2) + tau), not D / |D|."""
    d = np.full(DIM, 0.5, np.float32)
    step = fedadam().apply(fedadam().init(START), Aggregate(d, {}, 1, 1.0)).params - START
    want = 0.01 * 0.05 / (sqrt(0.99 * 1e-6 + 0.01 * 0.25) + 1e-3)
    np.testing.assert_allclose(step, want, rtol=1e-3)


def test_prox_is_a_pull_on_devices() -> None:
    assert fedprox(0.25).client.pull == 0.25
    assert fedavg().client.pull == 0.0


def _torch(make: Callable[[list], object]) -> Vector:  # type: ignore[type-arg]
    torch = pytest.importorskip("torch")
    w = torch.tensor(START.copy(), requires_grad=True)
    optimizer = make([w])
    for d in MEANS:
        w.grad = torch.tensor(-d)
        optimizer.step()  # type: ignore[attr-defined]
    return np.asarray(w.detach().numpy(), np.float32)


def test_momentum_is_torch_sgd() -> None:
    torch = pytest.importorskip("torch")
    for use in (False, True):
        want = _torch(lambda p, use=use: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=use))  # type: ignore[misc]
        np.testing.assert_allclose(run(fedavgm(0.7, 0.9, use)).params, want, rtol=1e-6, atol=1e-6)


def test_adagrad_is_torch_adagrad() -> None:
    torch = pytest.importorskip("torch")
    want = _torch(lambda p: torch.optim.Adagrad(p, lr=0.03, initial_accumulator_value=1e-6, eps=1e-3))
    np.testing.assert_allclose(run(fedadagrad()).params, want, rtol=1e-6, atol=1e-6)
