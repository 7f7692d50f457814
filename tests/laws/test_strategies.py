"""Every strategy of the catalogue, with its defaults, is a pure step of the server along the mean update."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Segment, Vector
from edgewise.plan.catalogue import BUILT_IN
from edgewise.strategies.base import State, Strategy, hold

DIM, ROUNDS = 20, 8
START = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
MEANS = (np.random.default_rng(1).standard_normal((ROUNDS, DIM)) * 0.05).astype(np.float32)
# All of the catalogue, made by their defaults. A strategy that has none needs keys here.
KEYS: dict[str, dict[str, float]] = {}
STRATEGIES: dict[str, Strategy] = {name: part(**KEYS.get(name, {})) for name, part in BUILT_IN.strategies.items()}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def stepped(strategy: Strategy, means: np.ndarray = MEANS, start: Vector = START) -> State:
    state = strategy.init(start)
    for d in means:
        state = strategy.apply(state, Aggregate(d, {}, 4, 4.0))
    return state


@every
def test_a_step_is_pure_and_deterministic(strategy: Strategy) -> None:
    state = stepped(strategy, MEANS[:3])
    before = state.params.tobytes(), {k: v.tobytes() for k, v in state.slots.items()}, MEANS.tobytes()
    one, two = (strategy.apply(state, Aggregate(MEANS[3], {}, 4, 4.0)) for _ in range(2))
    assert (state.params.tobytes(), {k: v.tobytes() for k, v in state.slots.items()}, MEANS.tobytes()) == before
    assert one.params.tobytes() == two.params.tobytes()
    assert {k: v.tobytes() for k, v in one.slots.items()} == {k: v.tobytes() for k, v in two.slots.items()}


@every
def test_the_state_keeps_its_shape(strategy: Strategy) -> None:
    """float32, of the parameters' length, under the names that ``init`` gives: what a checkpoint stores."""
    state = stepped(strategy)
    assert state.round == ROUNDS
    assert state.slots.keys() == strategy.init(START).slots.keys()
    for x in (state.params, *state.slots.values()):
        assert (x.dtype, x.shape) == (np.float32, (DIM,))
        assert np.isfinite(x).all()


@every
def test_the_model_moves_along_the_mean_update(strategy: Strategy) -> None:
    """D points from the old model to the trained ones, so the server adds."""
    moved = stepped(strategy, MEANS[:1]).params - START
    assert (np.sign(moved) == np.sign(MEANS[0])).all()


@every
def test_coordinates_do_not_meet(strategy: Strategy) -> None:
    """A step of a part of the model is the part of the step, so that blocks and phases may be computed apart."""
    whole, part = stepped(strategy), stepped(strategy, MEANS[:, 5:9], START[5:9])
    assert whole.params[5:9].tobytes() == part.params.tobytes()


@every
def test_an_empty_round_moves_nothing_from_rest(strategy: Strategy) -> None:
    state = strategy.apply(strategy.init(START), Aggregate(np.zeros(DIM, np.float32), {}, 0, 0.0))
    assert (state.params == START).all()


@every
def test_what_did_not_travel_is_held(strategy: Strategy) -> None:
    frozen = Segment("b", (7,), "float32", 3)
    before = stepped(strategy, MEANS[:4])
    after = hold(before, strategy.apply(before, Aggregate(MEANS[4], {}, 4, 4.0)), [frozen])
    for old, new in ((before.params, after.params), *((before.slots[k], after.slots[k]) for k in after.slots)):
        assert (old[3:10] == new[3:10]).all()
    assert (before.params[:3] != after.params[:3]).all()


@every
def test_it_has_a_name_with_its_arguments(strategy: Strategy) -> None:
    assert "(" in strategy.name


def test_every_strategy_of_the_catalogue_is_under_these_laws() -> None:
    assert set(STRATEGIES) == set(BUILT_IN.strategies)
    assert {strategy.name.split("(")[0] for strategy in STRATEGIES.values()} == set(BUILT_IN.strategies)
