"""With noise, nobody learns from who is in a sum, or from the form of an answer, what a device holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from invited import invited

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain

DIM = 4096
SPEC = Spec.of([("w", (DIM,), "float32")])
DP = {"epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0}


def plan(word: str, **changes: Any) -> Plan:
    merge = {"kind": "secure_sum" if word == "distributed_dp" else "sum"}
    plain = {"privacy": word, "trainable": {"kind": "full"}, "round": {"rounds": 5}, "dp": DP, "merge": merge}
    return compile(from_plain({**plain, **changes}), SPEC, 20, BUILT_IN)


def test_zeros_in_place_of_an_update_leave_the_memory_of_their_round() -> None:
    """The server counts them, so the next invitation names their round. The memory of that round is what it was."""
    checked = plan("central_dp", stage=[{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.1}])
    state: Any = states.join(checked, "dev0")
    for number, value in enumerate((0.1, 3e38, 3e38, 0.1)):  # residual and update overflow together in round 2
        before = state
        state, effects = machine.step(checked, state, invited(checked, number, accepted=number - 1 if number else None))
        assert isinstance(effects[0], device_events.Train)
        state, _ = machine.step(checked, state, device_events.Trained(Update(np.full(DIM, value, np.float32), {}, 1.0)))
        if number == 2:
            assert state.pending.round == 2
            assert state.pending.memory is before.pending.memory


def answer(plan: Plan, x: vector.Vector) -> frame.Frame:
    """Message of a device after training gave ``x``."""
    state, _ = machine.step(plan, states.join(plan, "dev0"), invited(plan))
    trained = device_events.Trained(Update(x, {}, 10.0))
    _, effects = machine.step(plan, state, trained, simulated_trust(plan.key))
    (sent,) = (frame.load(e.frame) for e in effects if isinstance(e, device_events.SendFrame))
    return sent


RANDOM, ROTATE, SKETCH = {"kind": "random_k", "fraction": 0.01}, {"kind": "rotate"}, {"kind": "sketch", "ratio": 4}


@pytest.mark.parametrize(
    ("word", "stage"),
    [(word, stage) for word in ("central_dp", "local_dp") for stage in (RANDOM, ROTATE, SKETCH)]
    + [("distributed_dp", stage) for stage in (RANDOM, SKETCH)],
)
def test_an_update_that_cannot_be_encoded_is_answered_as_zeros_are(word: str, stage: dict[str, Any]) -> None:
    """Each stage overflows float32 before the clip."""
    checked = plan(word, stage=[stage])
    quiet, loud = (answer(checked, np.full(DIM, x, np.float32)) for x in (0.0, 3e38))
    assert type(quiet) is type(loud)
    assert not isinstance(loud, frame.Refusal)
    if word == "central_dp":
        pipe = checked.at(0)
        for sent in (quiet, loud):
            assert isinstance(sent, frame.Contribution)
            assert pipe.add(pipe.start_sum(), pack.unpack(sent.payload, pipe.encoded), checked.turn(0)).n == 1
