"""Laws of all strategies with their defaults: a pure step of the server, and a pure half on devices."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.stage import Aggregate
from edgewise.core.vector import Segment, Vector
from edgewise.plan.catalogue import BUILT_IN
from edgewise.strategies.base import State, Strategy, hold_frozen_segments
from edgewise.strategies.client import PREVIOUS, LocalWork

DIM, ROUNDS = 20, 8
START = np.random.default_rng(0).standard_normal(DIM).astype(np.float32)
MEANS = (np.random.default_rng(1).standard_normal((ROUNDS, DIM)) * 0.05).astype(np.float32)
# All of the catalogue, made by their defaults. A strategy that has none needs keys here, and those that ask the plan.
KEYS: dict[str, dict[str, float]] = {"scaffold": {"population": 8}, "feddyn": {"population": 8}}
STRATEGIES: dict[str, Strategy] = {name: part(**KEYS.get(name, {})) for name, part in BUILT_IN.strategies.items()}
every = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def aggregate(strategy: Strategy, mean: Vector, n: int = 4) -> Aggregate:
    """Make the aggregate of a round in which everything that devices send has this mean."""
    client = strategy.client
    return Aggregate(mean, dict.fromkeys(client.head, 1.0), n, float(n), dict.fromkeys(client.sends, mean))


def stepped(strategy: Strategy, means: np.ndarray = MEANS, start: Vector = START) -> State:
    state = strategy.init(start)
    for d in means:
        state = strategy.apply(state, aggregate(strategy, d))
    return state


@every
def test_a_step_is_pure_and_deterministic(strategy: Strategy) -> None:
    state = stepped(strategy, MEANS[:3])
    before = state.params.tobytes(), {k: v.tobytes() for k, v in state.slots.items()}, MEANS.tobytes()
    one, two = (strategy.apply(state, aggregate(strategy, MEANS[3])) for _ in range(2))
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
    """A step of a part of the model is the part of the step. Blocks and phases may be computed separately."""
    whole, part = stepped(strategy), stepped(strategy, MEANS[:, 5:9], START[5:9])
    assert whole.params[5:9].tobytes() == part.params.tobytes()


@every
def test_an_empty_round_moves_nothing_from_rest(strategy: Strategy) -> None:
    state = strategy.apply(strategy.init(START), aggregate(strategy, np.zeros(DIM, np.float32), 0))
    assert (state.params == START).all()


@every
def test_what_did_not_travel_is_held(strategy: Strategy) -> None:
    frozen = Segment("b", (7,), "float32", 3)
    before = stepped(strategy, MEANS[:4])
    after = hold_frozen_segments(before, strategy.apply(before, aggregate(strategy, MEANS[4])), [frozen])
    for old, new in ((before.params, after.params), *((before.slots[k], after.slots[k]) for k in after.slots)):
        assert (old[3:10] == new[3:10]).all()
    assert (before.params[:3] != after.params[:3]).all()


@every
def test_it_has_a_name_with_its_arguments_and_a_sentence(strategy: Strategy) -> None:
    assert "(" in strategy.name
    assert strategy.says[0].islower(), "a clause, as those of stages, merges and posts"
    assert not strategy.says.endswith(".")
    client = strategy.client
    if client.pull or client.shift:
        assert "devices" in strategy.says, "what a device does besides is not hidden from who reads it"


WORK = LocalWork(steps=3, most=4, lr=0.05, base_lr=0.1, momentum=0.0)


def vectors(names: tuple[str, ...], seed: int) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(DIM).astype(np.float32) for name in names}


@every
def test_the_client_half_is_pure_and_says_what_it_gives(strategy: Strategy) -> None:
    client, x = strategy.client, MEANS[0].copy()
    memory, given = vectors(client.memory, 2), vectors(client.given, 3)
    before = [a.tobytes() for a in (x, *memory.values(), *given.values())]
    twice = [client.finished(x, memory, given, WORK) for _ in range(2)]
    corrections = [client.correction(memory, given, WORK) for _ in range(2)]
    assert [a.tobytes() for a in (x, *memory.values(), *given.values())] == before
    done = twice[0]
    kept_by_engine = client.memory if client.contrast else ()  # the trained model, which no hook sees
    assert (set(done.beside), set(done.head), {*done.memory, *kept_by_engine}) == (
        set(client.sends), set(client.head), set(client.memory),
    )  # fmt: skip
    assert client.contrast is None or (client.finish is None and client.memory == (PREVIOUS,))
    assert set(client.given) <= set(strategy.init(START).slots)
    assert all(0.0 <= value <= 1.0 for value in done.head.values())
    for a, b in zip((done.x, *done.beside.values(), *done.memory.values()),
                    (twice[1].x, *twice[1].beside.values(), *twice[1].memory.values()), strict=True):  # fmt: skip
        assert (a.dtype, a.shape, a.tobytes()) == (np.float32, (DIM,), b.tobytes())
    if (shift := corrections[0].shift) is not None:
        assert (shift.dtype, shift.shape) == (np.float32, (DIM,))
        assert not any(np.shares_memory(shift, a) for a in (*memory.values(), *given.values())), (
            "trainers may use it up"
        )
        assert corrections[1].shift is not None
        assert shift.tobytes() == corrections[1].shift.tobytes()


@every
def test_a_first_round_has_nothing_to_correct_by(strategy: Strategy) -> None:
    """From a memory of zeros, the shift is zero and the update keeps its direction."""
    client, nothing = strategy.client, np.zeros(DIM, np.float32)
    memory, given = dict.fromkeys(client.memory, nothing), dict.fromkeys(client.given, nothing)
    shift = client.correction(memory, given, WORK).shift
    assert shift is None or not shift.any()
    assert (np.sign(client.finished(MEANS[0], memory, given, WORK).x) == np.sign(MEANS[0])).all()


def test_every_strategy_of_the_catalogue_is_under_these_laws() -> None:
    assert set(STRATEGIES) == set(BUILT_IN.strategies)
    assert {strategy.name.split("(")[0] for strategy in STRATEGIES.values()} == set(BUILT_IN.strategies)
