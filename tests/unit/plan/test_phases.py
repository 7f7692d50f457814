"""Layer-wise federation in the plan and on the device: one pipeline per phase, each with its own memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from invited import invited
from toy_recipe import make_recipe

from edgewise.codecs.select.segments import segments
from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.memory import Memory
from edgewise.core.part import Part
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN, Extension
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.strategies.base import State, hold_frozen_segments
from edgewise.strategies.fedopt import fedadam, fedavgm

SPEC = Spec.of([("layers.0.w", (30,), "float32"), ("layers.1.w", (24,), "float32"), ("layers.1.b", (6,), "float32")])
FIRST, SECOND = slice(0, 30), slice(30, 60)
HEAD = {"loss_first": 2.0, "loss_last": 1.0}
TURNS = [
    {"kind": "segments", "cycle": 2},
    {"kind": "weigh", "cap": 100},
    {"kind": "feedback", "residual": "float32"},
    {"kind": "top_k", "fraction": 0.2},
]


def plan(stages: list[dict[str, Any]] | None = None, spec: Spec = SPEC, **overrides: Any) -> Plan:
    recipe = make_recipe({"stage": stages or TURNS, **{k.replace("__", "."): v for k, v in overrides.items()}})
    return compile(recipe, spec, 8, BUILT_IN)


def invite(
    p: Plan, number: int, accepted: int | None = None, rule: frame.LocalRule | None = None
) -> device_events.Invited:
    return invited(p, number, accepted=accepted, rule=rule or p.rule(number))


def contribute(p: Plan, state: Any, number: int, accepted: int | None, x: np.ndarray) -> tuple[Any, np.ndarray]:
    """The next state, and what the server decodes."""
    state, (train,) = machine.step(p, state, invite(p, number, accepted))
    assert isinstance(train, device_events.Train)
    state, effects = machine.step(p, state, device_events.Trained(Update(x, HEAD, 100.0)))
    sent = frame.load(effects[-1].frame)
    assert isinstance(sent, frame.Contribution)
    return state, p.at(number).decode(pack.unpack(sent.payload, p.at(number).encoded), p.turn(number)).body


def test_rounds_take_turns() -> None:
    p = plan()
    assert len(p.pipelines) == 2
    assert [p.at(r) for r in range(4)] == [p.pipelines[0], p.pipelines[1], p.pipelines[0], p.pipelines[1]]
    assert p.rule(2).segments == ("layers.0.w",)
    assert p.rule(3).segments == ("layers.1.w", "layers.1.b")
    assert [s.name for s in p.frozen(2)] == ["layers.1.w", "layers.1.b"]
    assert [s.name for s in p.frozen(3)] == ["layers.0.w"]


def test_what_no_group_holds_is_frozen_in_every_round() -> None:
    p = plan([{"kind": "segments", "names": ["layers.1.*"], "cycle": 2}])
    assert [[s.name for s in p.frozen(r)] for r in range(2)] == [
        ["layers.0.w", "layers.1.b"],
        ["layers.0.w", "layers.1.w"],
    ]


@pytest.mark.parametrize("stages", [[{"kind": "weigh"}], [{"kind": "segments", "names": ["layers.1.*"]}]])
def test_without_a_cycle_all_rounds_are_alike_and_everything_trains(stages: list[dict[str, Any]]) -> None:
    p = plan(stages)
    assert len(p.pipelines) == 1
    assert p.groups == p.frozen(0) == p.rule(1).segments == ()


def test_sizes_are_those_of_the_round_and_the_limit_fits_the_largest() -> None:
    spec = Spec.of([("a", (10,), "float32"), ("b", (4000,), "float32")])
    p = plan([{"kind": "segments", "cycle": 2}], spec)
    small, large = p.upload_bytes(0), p.upload_bytes(1)
    assert large - small == 4 * 3990
    assert p.frame_limit_bytes == plan([{"kind": "segments", "names": ["b"]}], spec).frame_limit_bytes
    turns = plan(
        [{"kind": "segments", "cycle": 2}], spec, **{"round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 8}
    )
    assert explain.cost(turns)["up"] == explain.cost(p)["up"], "whichever parts the first rounds have"
    cost = explain.cost(p)
    around = cost["up_largest"] - large  # the frame
    assert 0 < around < 500
    assert cost["up"] == (small + large) / 2 + around
    what = (
        "keeps 0.249 % of the coordinates, the same on all devices; 2 groups of 0.249, 99.8 % take turns, the group of"
    )
    assert explain.trace(p)[1]["does"] == f"{what} round 0 is shown"


def test_claims_name_the_loosest_bound() -> None:
    stages = [{"kind": "segments", "cycle": 2}, {"kind": "clip", "l2": 2.0}]
    assert "one device moves the summed update by at most 2 (L2)" in plan(stages, metrics="none").claims
    p = plan(stages, metrics="none", post=[{"kind": "noise", "z": 0.5}])
    assert any(c.startswith("the sum has noise of std 1") for c in p.claims)


def test_a_second_schedule_is_refused() -> None:
    mine = BUILT_IN.extended(Extension((Part(segments.function, "mine", segments.turns),)))
    stages = [{"kind": "segments", "cycle": 2}, {"kind": "mine", "cycle": 3}]
    with pytest.raises(CompositionError, match=r"E-ORDER: \[\[stage\]\] 2 \(mine\)"):
        compile(make_recipe({"stage": stages}), SPEC, 8, mine)


@pytest.mark.parametrize(("cycle", "code"), [(4, "only 3 segments match"), (0, "cycle"), (1.5, "cycle")])
def test_cycles_that_cannot_be(cycle: float, code: str) -> None:
    with pytest.raises(RecipeError, match=code):
        plan([{"kind": "segments", "cycle": cycle}])


def fed_back(held: states.After | None, phase: int) -> Memory:
    """Memory of ``feedback``, the third stage, for a phase."""
    assert held is not None
    return held.memory.child("phase", phase).child("stage", 2)


def test_each_phase_telescopes_on_its_own() -> None:
    """The sent updates and the residuals of the phases add up to what was trained, group by group."""
    p, g = plan(round__rounds=7), np.random.default_rng(3)
    state, sent, given = states.join(p, "d"), np.zeros(60), np.zeros(60)
    assert set(state.committed.memory.children) == {("phase", 0), ("phase", 1)}
    for number in range(7):
        x = np.zeros(60, np.float32)
        group = (FIRST, SECOND)[number % 2]
        x[group] = g.standard_normal(30)
        other = None if state.pending is None else state.pending.memory.child("phase", 1 - number % 2)
        state, body = contribute(p, state, number, number - 1 if number else None, x)
        now = state.pending.memory.child("phase", 1 - number % 2)
        assert other is None or now is other, "the other phase's memory passes through"
        assert not body[(SECOND, FIRST)[number % 2]].any()
        sent, given = sent + body, given + x
    residuals = [fed_back(state.pending, i)["residual"] for i in range(2)]
    assert all(r.any() for r in residuals)
    np.testing.assert_allclose(sent + np.concatenate(residuals), given, atol=1e-5)
    assert [int(fed_back(state.pending, i)["last"][0]) for i in range(2)] == [6, 5]


def test_a_contribution_that_was_not_used_changes_no_phase() -> None:
    p, x = plan(), np.linspace(-1, 1, 60, dtype=np.float32)
    state, _ = contribute(p, states.join(p, "d"), 0, None, x)
    kept = states.idle_of("d", states.memory_of(state))
    state, _ = contribute(p, kept, 1, None, x)  # round 0 was late
    assert not fed_back(state.committed, 0)["residual"].any()
    assert not fed_back(state.pending, 0)["residual"].any()
    assert fed_back(state.pending, 1)["residual"].any()
    state, _ = contribute(p, kept, 1, 0, x)
    np.testing.assert_array_equal(
        fed_back(state.pending, 0)["residual"],
        fed_back(kept.pending, 0)["residual"],
    )


@pytest.mark.parametrize(("number", "factor"), [(2, 1.0), (4, 0.5), (6, 0.25), (8, 0.0)])
def test_absence_counts_visits_of_the_phase(number: int, factor: float) -> None:
    feedback = {"kind": "feedback", "residual": "float32", "decay": 0.5, "forget_after": 3}
    p = plan([*TURNS[:2], feedback, TURNS[3]], round__rounds=9)
    x = np.zeros(60, np.float32)
    x[FIRST] = np.arange(1, 31)
    state, _ = contribute(p, states.join(p, "d"), 0, None, x)
    before = fed_back(state.pending, 0)["residual"].copy()
    state, body = contribute(p, state, number, 0, np.zeros(60, np.float32))
    np.testing.assert_allclose(body[FIRST] + fed_back(state.pending, 0)["residual"], factor * before, atol=1e-6)


def test_an_invitation_to_train_unknown_segments_is_refused() -> None:
    p = plan()
    rule = frame.LocalRule(steps=1, lr=0.1, segments=("layers.0.w", "layers.9.w"))
    state, (send,) = machine.step(p, states.join(p, "d"), invite(p, 0, rule=rule))
    assert isinstance(state, states.Idle)
    assert isinstance(send, device_events.SendFrame)
    refusal = frame.load(send.frame)
    assert isinstance(refusal, frame.Refusal)
    assert (refusal.code, "segments" in refusal.reason) == ("E-INVITE", True)


@pytest.mark.parametrize("strategy", [fedavgm(0.5, 0.9), fedadam(0.1)])
def test_the_server_holds_what_did_not_travel(strategy: Any) -> None:
    """A zero update would not: momentum goes on. Held, each group is as if the other rounds had not been."""
    from edgewise.core.stage import Aggregate

    p, g = plan(), np.random.default_rng(5)
    state, alone = strategy.init(np.ones(60, np.float32)), [strategy.init(np.ones(30, np.float32))] * 2
    for number in range(6):
        group = (FIRST, SECOND)[number % 2]
        mean = np.zeros(60, np.float32)
        mean[group] = g.standard_normal(30)
        state = hold_frozen_segments(state, strategy.apply(state, Aggregate(mean, {}, 1, 1.0)), p.frozen(number))
        alone[number % 2] = strategy.apply(alone[number % 2], Aggregate(mean[group], {}, 1, 1.0))
    assert state.round == 6
    np.testing.assert_array_equal(state.params, np.concatenate([s.params for s in alone]))
    for name in state.slots:
        np.testing.assert_array_equal(state.slots[name], np.concatenate([s.slots[name] for s in alone]))


def test_holding_nothing_is_free() -> None:
    state = State(np.ones(3, np.float32))
    assert hold_frozen_segments(State(np.zeros(3, np.float32)), state, ()) is state
