"""The device machine: idempotent retries, committed and pending memory, refusals instead of exceptions."""

from __future__ import annotations

import numpy as np
import pytest
from invited import invitation, invited
from toy_recipe import make_recipe

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan

SPEC = Spec.of([("w", (40,), "float32")])
PLAN = compile_plan(make_recipe(), SPEC, 8, BUILT_IN)
X = np.random.default_rng(0).normal(size=40).astype(np.float32)
HEAD = {"loss_first": 2.0, "loss_last": 1.0}


def contribute(state, number, accepted=None, x=X):
    state, (train,) = machine.step(PLAN, state, invited(PLAN, number, accepted=accepted))
    assert isinstance(train, device_events.Train)
    state, effects = machine.step(PLAN, state, device_events.Trained(Update(x, HEAD, 100.0)))
    assert isinstance(effects[-1], device_events.SendFrame)
    return state, frame.load(effects[-1].frame)


def residual(memory):
    """Of ``feedback``, the second stage: bfloat16, the upper halves of float32."""
    return (memory.child("phase", 0).child("stage", 1)["residual"].astype(np.uint32) << 16).view(np.float32)


def reloaded(state):
    """The state as a store gives it back."""
    return states.resumed(states.idle_of(state.device, states.memory_of(state)), states.session_of(state))


def decoded(sent, number):
    payload = pack.unpack(sent.payload, PLAN.at(0).encoded)
    return PLAN.at(0).decode(payload, PLAN.turn(number)).body


def test_what_was_not_sent_is_remembered():
    state, sent = contribute(states.join(PLAN, "d"), 0)
    # weigh: 100 of 160 tokens
    left = X * np.float32(100 / 160) - decoded(sent, 0)
    np.testing.assert_allclose(residual(state.pending.memory), left, rtol=2**-7, atol=1e-7)
    assert np.abs(residual(state.pending.memory)).max() > 0


def test_a_repeated_invitation_gives_the_same_bytes():
    first, sent = contribute(states.join(PLAN, "d"), 0)
    again, resent = contribute(first, 0)
    assert sent == resent
    np.testing.assert_array_equal(residual(first.pending.memory), residual(again.pending.memory))


def test_memory_is_committed_only_when_the_server_used_it():
    state, _ = contribute(states.join(PLAN, "d"), 0)
    taken, sent_after = contribute(state, 1, accepted=0)
    dropped, sent_fresh = contribute(state, 1, accepted=None)
    np.testing.assert_array_equal(residual(taken.committed.memory), residual(state.pending.memory))
    assert not residual(dropped.committed.memory).any()
    assert sent_after.payload != sent_fresh.payload


def test_state_survives_saving_at_any_point():
    state, _ = contribute(states.join(PLAN, "d"), 0)
    loaded = reloaded(state)
    assert loaded.pending.round == 0
    assert contribute(state, 1, 0)[1] == contribute(loaded, 1, 0)[1]


def test_failure_and_nan_are_refusals_and_change_no_memory():
    start, _ = contribute(states.join(PLAN, "d"), 0)
    training, _ = machine.step(PLAN, start, invited(PLAN, 1, accepted=0))
    state, (send,) = machine.step(PLAN, training, device_events.Failed("E-DEVICE-DATA", "no text"))
    assert frame.load(send.frame).code == "E-DEVICE-DATA"
    np.testing.assert_array_equal(residual(state.committed.memory), residual(start.pending.memory))
    bad = X.copy()
    bad[7] = np.inf
    state, (send,) = machine.step(PLAN, training, device_events.Trained(Update(bad, HEAD, 1.0)))
    assert frame.load(send.frame).code == "E-NAN"
    np.testing.assert_array_equal(residual(state.committed.memory), residual(start.pending.memory))


def test_a_model_that_cannot_be_had_is_a_refusal_and_keeps_the_memory_that_holds():
    start, _ = contribute(states.join(PLAN, "d"), 0)
    for accepted in (0, None):
        state, (send,) = machine.step(
            PLAN, start, device_events.Unready(invitation(PLAN, 1, accepted=accepted), "E-STALE", "wiped")
        )
        refused = frame.load(send.frame)
        assert (refused.code, refused.reason, refused.round) == ("E-STALE", "wiped", 1)
        assert state is start, "the next invitation commits or discards what was pending"


def test_losses_outside_the_bound_are_cut():
    training, _ = machine.step(PLAN, states.join(PLAN, "d"), invited(PLAN))
    _, effects = machine.step(
        PLAN, training, device_events.Trained(Update(X, {"loss_first": 1e9, "loss_last": -5}, 160.0))
    )
    payload = pack.unpack(frame.load(effects[-1].frame).payload, PLAN.at(0).encoded)
    assert dict(zip(PLAN.at(0).encoded.head, payload.head.tolist(), strict=True)) == {
        "loss_first": 20.0,
        "loss_last": 0.0,
        "weight": 1.0,
    }


def test_misuse_by_the_driver_raises():
    with pytest.raises(ValueError, match="not training"):
        machine.step(PLAN, states.join(PLAN, "d"), device_events.Failed("E-TRAIN", ""))


def lost(number, accepted, state):
    """Answer of a device whose memory is of another round."""
    state, effects = machine.step(PLAN, state, invited(PLAN, number, accepted=accepted))
    remember, send = effects
    assert isinstance(remember, device_events.Save)
    assert remember.state == state
    return state, frame.load(send.frame)


@pytest.mark.parametrize(
    ("rounds", "accepted"),
    [((), 1), ((0,), 1), ((0, 1), None), ((0, 1, 2), 0)],
    ids=["wiped", "device from a backup", "server begun anew", "server from a backup"],
)
def test_memory_of_another_round_is_refused_once_and_never_used(rounds, accepted):
    """The device and the server are out of step. Nothing is trained, the server hears of it, and the device goes on."""
    state, before = states.join(PLAN, "d"), None
    for number in rounds:
        state, _ = contribute(state, number, before)
        before = number
    state, refused = lost(2, accepted, state)
    assert (refused.code, refused.round) == ("E-STALE", 2)
    assert not residual(state.committed.memory).any()
    assert state.pending is None
    fresh = contribute(states.join(PLAN, "d"), 3)[1]
    state, sent = contribute(reloaded(state), 3, accepted)
    assert sent.payload == fresh.payload, "empty memory, as of a device that has never taken part"
    assert (state.committed.round, state.pending.round) == (accepted, 3)
