"""Rest of devices in asynchronous rounds: the server gives it, and a device insists on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from invited import invited
from toy_recipe import make_recipe

from edgewise.core import frame
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.engine import admission, device_events
from edgewise.engine import device as machine
from edgewise.engine import device_state as states
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.plan import Plan

SPEC = Spec.of([("w", (40,), "float32")])
UPDATE = Update(np.full(40, 0.5, np.float32), {"loss_first": 2.0, "loss_last": 1.0}, 100.0)
BUFFERED: dict[str, Any] = {
    "round.rounds": 20, "round.sampling": "buffered", "round.cohort": 2, "buffer.concurrency": 4, "buffer.rest": 3,
    "data.devices": 40, "stage": [],
}  # fmt: skip
NOISED = {"metrics": "none", "dp.noise_multiplier": 1.0, "dp.delta": 1e-4, "dp.clip_l2": 1.0}
PRIVATE = {**NOISED, "privacy": "central_dp"}
LOCAL = {**NOISED, "privacy": "local_dp"}


def plan_of(**overrides: Any) -> Plan:
    return compile_plan(make_recipe({**BUFFERED, **overrides}), SPEC, 40, BUILT_IN)


def answered(plan: Plan, state: states.State, round: int) -> tuple[states.State, frame.Message]:
    """The device after an invitation, and what it sent."""
    state, effects = machine.step(plan, state, invited(plan, round))
    if isinstance(state, states.Training):
        state, effects = machine.step(plan, state, device_events.Trained(UPDATE))
    (sent,) = [effect.frame for effect in effects if isinstance(effect, device_events.SendFrame)]
    return state, frame.load(sent)


@pytest.mark.parametrize("settings", [{}, PRIVATE, LOCAL], ids=["none", "central", "local"])
def test_a_device_refuses_a_round_before_its_rest_is_over_whatever_the_server_names(settings: dict[str, Any]) -> None:
    plan = plan_of(**settings)
    state, sent = answered(plan, states.join(plan, "d"), 4)
    assert isinstance(sent, frame.Contribution)
    for round in (3, 5, 6):
        after, sent = answered(plan, state, round)
        assert isinstance(sent, frame.Refusal)
        assert (sent.code, after) == ("E-REST", state)
    after, sent = answered(plan, state, 7)
    assert isinstance(sent, frame.Contribution)
    assert isinstance(after, states.Idle)
    assert after.answered == 7


def test_the_same_bytes_leave_again_unless_they_may_leave_once() -> None:
    plan = plan_of()
    state, first = answered(plan, states.join(plan, "d"), 4)
    assert answered(plan, state, 4)[1] == first
    plan = plan_of(**LOCAL)
    state, _ = answered(plan, states.join(plan, "d"), 4)
    refusal = answered(plan, state, 4)[1]
    assert isinstance(refusal, frame.Refusal)
    assert refusal.code == "E-SECAGG-ORDER"


def test_what_a_device_has_answered_is_saved_before_the_frame_leaves() -> None:
    plan = plan_of()
    state, (train, *_) = machine.step(plan, states.join(plan, "d"), invited(plan, 4))
    assert isinstance(train, device_events.Train)
    _, effects = machine.step(plan, state, device_events.Trained(UPDATE))
    kinds = [type(effect) for effect in effects]
    assert kinds.index(device_events.Save) < kinds.index(device_events.SendFrame)
    (saved,) = [effect.state for effect in effects if isinstance(effect, device_events.Save)]
    assert isinstance(saved, states.Idle)
    assert saved.answered == 4


@pytest.mark.parametrize(
    ("settings", "counts"),
    [({}, True), ({"buffer.rest": 1}, False), ({**PRIVATE, "buffer.rest": 1}, True),
     ({"round.sampling": "fixed", "buffer.concurrency": 0, "buffer.rest": 1}, False)],
)  # fmt: skip
def test_a_device_counts_rounds_where_something_rests_on_it(settings: dict[str, Any], counts: bool) -> None:
    assert admission.counts_rounds(plan_of(**settings)) is counts
