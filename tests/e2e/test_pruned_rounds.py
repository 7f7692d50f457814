"""Pruning between rounds: exact zeros in the merge of every kind of round, on devices, and after a stop."""

from __future__ import annotations

import numpy as np
import pytest
from invited import invited
from toy_recipe import make_recipe

from edgewise.apps.report import summary
from edgewise.apps.simulate import simulation
from edgewise.codecs.wire import pack
from edgewise.core import events, frame, vector
from edgewise.core.errors import RecipeError
from edgewise.core.stage import Aggregate
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import device as machine
from edgewise.engine import device_events, released
from edgewise.engine import device_state as states
from edgewise.plan import pruning
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan

PRUNE = {"prune": {"to": 0.5, "every": 2}, "stage": [{"kind": "weigh", "cap": 160}], "compare.local_only": False,
         "compare.centralised": False}  # fmt: skip
SHARED = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}]
HIDDEN = {**PRUNE, "privacy": "hidden", "merge": {"kind": "secure_sum"},
          "stage": [{"kind": "rotate"}, *SHARED]}  # fmt: skip
PRIVATE = {**PRUNE, "privacy": "central_dp", "metrics": "none", "stage": [], "dp.epsilon": 20.0, "dp.delta": 1e-5,
           "dp.clip_l2": 4.0, "trainable.kind": "full"}  # fmt: skip
SPEC = Spec.of([("layers.0.w.weight", (5, 8), "float32"), ("b", (10,), "float32")])


@pytest.fixture(autouse=True)
def _matrix(monkeypatch):
    monkeypatch.setenv("TOY_ROWS", "5")


def play(out, overrides, **more):
    simulation.run(make_recipe(overrides), out=out, recipe_dir=out, extensions=["toy"], report=False, **more)


def models(out):
    """The digest of each round's model, and the last checkpoint."""
    with RunStore(out) as store:
        return store.models(), store.load()


def zeros(params):
    return int(np.count_nonzero(params[:40] == 0)), int(np.count_nonzero(params[40:] == 0))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [PRUNE, HIDDEN, PRIVATE], ids=["plain", "hidden", "private"])
def test_half_of_the_matrix_is_exactly_zero_and_a_stopped_run_ends_in_the_same_bytes(tmp_path, overrides):
    play(tmp_path / "calm", overrides)
    calm, checkpoint = models(tmp_path / "calm")
    assert zeros(checkpoint.state.params) == (20, 0)
    with RunStore(tmp_path / "calm") as store:
        assert summary.build(store)["pruning"] == {"wanted": 0.5, "zero": 0.5}
    accepted = []

    def stop(event):
        if isinstance(event, events.Accepted):
            accepted.append(event)
            if len(accepted) == 20:  # in the third of four rounds, after the first pruning
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(tmp_path / "stopped", overrides, sinks=[stop])
    play(tmp_path / "stopped", overrides, resume=True)
    resumed, after = models(tmp_path / "stopped")
    assert resumed == calm
    assert vector.to_bytes(after.state.params) == vector.to_bytes(checkpoint.state.params)


def plan_of(overrides, spec=SPEC):
    return compile_plan(make_recipe({**PRUNE, **overrides}), spec, 8, BUILT_IN)


def test_pruned_weights_stay_zero_and_the_smallest_go_next():
    plan = plan_of({})
    before = np.arange(1, 51, dtype=np.float32)
    first = pruning.pruned_by_plan(plan, 1, before, before)  # after two of four rounds: 0.5 (1 - (1/2)^3)
    assert list(np.flatnonzero(first == 0)) == list(range(17))
    moved = first - 100 * (first == 0)  # as noise moves them
    second = pruning.pruned_by_plan(plan, 2, first, moved)
    np.testing.assert_array_equal(second, first)
    assert list(np.flatnonzero(pruning.pruned_by_plan(plan, 3, first, moved) == 0)) == list(range(20))


def test_a_matrix_that_begins_with_zeros_lives_on_where_the_first_rounds_were_abandoned():
    plan = plan_of({"strategy": {"kind": "fedavg"}})
    initial = np.zeros(50, np.float32)  # Rounds 0 and 1 had no sum, so nothing is pruned in round 2.
    mask = pruning.pruned_positions(plan, 2, initial)
    assert mask is not None
    assert not mask.any()
    state = plan.strategy.init(initial)
    mean = np.arange(1, 51, dtype=np.float32)
    after = released.stepped(plan, state, 2, Aggregate(mean, {}, 8, 8.0, {}))
    assert zeros(after.params) == (17, 0)


def test_a_device_sends_zeros_for_pruned_weights_before_it_clips():
    plan = plan_of({"stage": [{"kind": "clip", "l2": 1.0}]})
    params = np.ones(50, np.float32)
    params[:17] = 0.0
    params[45] = 0.0  # not in a matrix, so alive
    state, _ = machine.step(plan, states.join(plan, "d"), invited(plan, 2, params=params))
    x = np.full(50, 2.0, np.float32)
    update = device_events.Trained(Update(x, {"loss_first": 2.0, "loss_last": 1.0}, 100.0))
    _, effects = machine.step(plan, state, update)
    payload = pack.unpack(frame.load(effects[-1].frame).payload, plan.at(2).encoded)
    sent = plan.at(2).decode(payload, plan.turn(2)).body
    np.testing.assert_array_equal(np.flatnonzero(sent == 0), np.arange(17))
    assert np.linalg.norm(sent) == pytest.approx(1.0, rel=1e-4)  # the clip is over the weights that live


@pytest.mark.parametrize(
    ("overrides", "spec", "what"),
    [
        ({"stage": [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.2}]}, SPEC, "memory on devices"),
        ({"stage": [{"kind": "shared_top_k", "fraction": 0.2}]}, SPEC, "positions of the last release"),
        ({}, Spec.of([("embed.weight", (8, 8), "float32")]), "without a matrix"),
    ],
)
def test_what_holds_on_to_positions_is_refused(overrides, spec, what):
    with pytest.raises(RecipeError, match=what) as e:
        plan_of(overrides, spec)
    assert e.value.code == "E-COMBO"


def test_the_step_prunes_so_that_a_replay_does_too():
    plan = plan_of({"strategy": {"kind": "fedavg"}})
    state = plan.strategy.init(np.arange(1, 51, dtype=np.float32))
    after = released.stepped(plan, state, 3, Aggregate(np.zeros(50, np.float32), {}, 8, 8.0, {}))
    assert zeros(after.params) == (20, 0)
