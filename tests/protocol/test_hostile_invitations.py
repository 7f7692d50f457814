"""A server that lies in an invitation: the device refuses with a code, or trains by its own plan, and never raises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invited import SECRETS, invitation, invited

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.errors import REGISTRY
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Secrets
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

SPEC = Spec.of([("a", (32,), "float32"), ("b", (32,), "float32")])
DP = {"epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0}
EXAMPLE = {"noise_multiplier": 4.0, "delta": 1e-5, "clip_l2": 1.0, "unit": "example", "sample_rate": 0.05}
GRID = [{"kind": "clip", "l2": 1.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
MEMORY = [{"kind": "weigh", "cap": 100}, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.2}]
X = np.linspace(-1, 1, 64, dtype=np.float32)


def plan(word: str, **changes: Any) -> Plan:
    plain = {"privacy": word, "trainable": {"kind": "full"}, "round": {"rounds": 10}, "metrics": "none", **changes}
    return compile(from_plain(plain), SPEC, 20, BUILT_IN)


PLANS = {
    "none": plan("none", stage=MEMORY),
    "support": plan("none", stage=[{"kind": "shared_top_k", "fraction": 0.25}]),
    "turns": plan("none", stage=[{"kind": "segments", "cycle": 2}]),
    "deltas": plan("none", downlink=[{"kind": "quantize", "bits": 8}]),
    "hidden": plan("hidden", merge={"kind": "secure_sum"}, stage=GRID),
    "two servers": plan("hidden", merge={"kind": "shared_sum"}, stage=GRID),
    "central_dp": plan("central_dp", dp=DP),
    "following": plan("central_dp", dp={**DP, "epsilon": 40.0, "adaptive_clip": True}),
    "local_dp": plan("local_dp", dp=DP),
    "example": plan("local_dp", dp=EXAMPLE, training={"local_steps": 10}),
}


def asked(plan: Plan, state: states.State, event: device_events.Event) -> tuple[states.State, tuple[Any, ...]]:
    """Take a step with an invitation that was encoded and decoded."""
    if isinstance(event, device_events.Invited):
        message = frame.load(frame.dump(event.invite))
        assert isinstance(message, frame.Invite)
        event = device_events.Invited(message, event.params, event.secrets, event.support)
    return machine.step(plan, state, event, simulated_trust(plan.key))


def honest(plan: Plan, number: int = 0, /, secrets: Secrets = SECRETS, **lies: Any) -> device_events.Invited:
    """Make an honest server's invitation with some fields replaced by ``lies``."""
    support = np.zeros(0, np.int64) if plan.at(number).encoded.announced else None
    event = invited(
        plan,
        number,
        secrets=secrets,
        support=support,
        clip=None if (clips := plan.clips(number)) is None else min(clips),
    )
    return replace(event, invite=msgspec.structs.replace(event.invite, **lies))


def refusal(effects: tuple[Any, ...]) -> frame.Refusal | None:
    """Return the refusal, or None where the device asked for training."""
    if any(isinstance(effect, device_events.Train) for effect in effects):
        return None
    message = frame.load(effects[-1].frame)
    assert isinstance(message, frame.Refusal)
    return message


def contributed(plan: Plan, state: states.State, round: int) -> states.State:
    state, effects = asked(plan, state, honest(plan, round))
    assert refusal(effects) is None
    state, effects = asked(plan, state, device_events.Trained(Update(X, {}, 10.0)))
    assert isinstance(effects[-1], device_events.SendFrame)
    return state


INTEGERS = st.integers(-(2**63), 2**64 - 1) | st.integers(-3, 12) | st.sampled_from([2**63, 10**12, 10**15])
NUMBERS = st.integers(0, 2**64 - 1) | st.integers(0, 12)
FLOATS = st.floats() | st.sampled_from([math.nan, math.inf, -1.0, 0.0, 1e-9, 1e300])
HEX = st.text("0123456789abcdef", min_size=64, max_size=64) | st.text(max_size=80)
KEYS = st.binary(max_size=100) | st.binary(min_size=32, max_size=32)
NAMES = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=3).map(tuple)
RULES = st.builds(LocalRule, steps=INTEGERS, lr=FLOATS, segments=NAMES, epochs=FLOATS)
LIES: dict[str, st.SearchStrategy[Any]] = {
    "run": HEX, "round": INTEGERS, "spec": HEX, "model": HEX, "public": KEYS, "accepted": st.none() | NUMBERS,
    "deadline_s": FLOATS, "rule": RULES, "base": st.none() | HEX, "deltas": st.lists(HEX, max_size=3).map(tuple),
    "support": st.none() | HEX,
    "draw": st.none() | st.builds(frame.Draw, beacon=HEX, key=st.binary(min_size=32, max_size=32)),
    "nonce": st.none() | KEYS, "clip": st.none() | FLOATS,
}  # fmt: skip


def test_every_field_is_lied_about() -> None:
    assert set(LIES) == set(frame.Invite.__struct_fields__)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.long
@given(data=st.data())
def test_whatever_an_invitation_says(name: str, data: st.DataObject) -> None:
    plan = PLANS[name]
    state: states.State = states.join(plan, "d")
    if data.draw(st.booleans()):
        state = contributed(plan, state, 0)
    fields = data.draw(st.lists(st.sampled_from(sorted(LIES)), min_size=1, max_size=3, unique=True))
    event = honest(plan, 3, **{field: data.draw(LIES[field], label=field) for field in fields})
    after, effects = asked(plan, state, event)
    if (refused := refusal(effects)) is not None:
        assert refused.code in REGISTRY
        later = honest(plan, 4)
        if refused.code == "E-STALE":  # The device drops codec memory that the server does not know, and refuses once.
            later = honest(plan, 4, accepted=event.invite.accepted)
            assert states.remembers(plan)
        else:
            assert after is state, "a refusal changes nothing"
        assert refusal(asked(plan, after, later)[1]) is None, "and the next rounds go on"
        return
    request = effects[0].request
    assert request.rule == plan.rule(request.round)
    assert 0 <= request.round < plan.rounds
    _, effects = asked(plan, after, device_events.Trained(Update(X, {}, 10.0)))
    assert isinstance(effects[-1], device_events.SendFrame)


def rule(plan: Plan, round: int = 3, **changes: Any) -> LocalRule:
    return msgspec.structs.replace(plan.rule(round), **changes)


REFUSED: list[tuple[str, dict[str, Any]]] = [
    *(("example", {"rule": rule(PLANS["example"], steps=n)}) for n in (0, 1, 9, 11, 100, 10**12, -5)),
    *(("none", {"rule": rule(PLANS["none"], lr=lr)}) for lr in (math.nan, math.inf, 0.0, -1.0, 1.0)),
    *(("none", {"rule": rule(PLANS["none"], epochs=e)}) for e in (1.0, math.nan, -1.0)),
    ("none", {"rule": rule(PLANS["none"], segments=("a",))}),
    ("turns", {"rule": PLANS["turns"].rule(2)}),
    *((name, {"round": r}) for name in ("none", "hidden", "example", "local_dp") for r in (-1, 10, 10**15, 2**63)),
    *(("none", {"public": b}) for b in (b"", bytes(31), bytes(32), bytes(33), bytes(1000))),
    *(("hidden", {"nonce": b}) for b in (None, b"", bytes(31), bytes(33))),
    ("none", {"nonce": bytes(32)}),
    *((name, {"draw": frame.Draw(beacon="0" * 64, key=bytes(32))}) for name in ("none", "hidden", "two servers")),
    *(
        (name, {"clip": c})
        for name in ("none", "central_dp", "local_dp")
        for c in (math.nan, 0.0, 1.0, -1.0, 1e-30, math.inf)
    ),
    *(("following", {"clip": c}) for c in (None, math.nan, 0.0, -1.0, 0.7, 1.4, math.inf)),
    *(("none", {"accepted": a}) for a in (3, 4, 2**63)),
    *(("none", {"deadline_s": s}) for s in (math.nan, math.inf, 0.0, -1.0)),
    ("none", {"base": "0" * 64, "deltas": ("0" * 64,)}),
    ("deltas", {"base": "0" * 64}),
    ("deltas", {"deltas": ("0" * 64,)}),
    ("deltas", {"base": "zz", "deltas": ("0" * 64,)}),
    ("none", {"model": "A" * 64}),
    ("none", {"run": "other"}),
    ("none", {"spec": "other"}),
]


@pytest.mark.parametrize(("name", "changes"), REFUSED)
def test_lies_are_named(name: str, changes: dict[str, Any]) -> None:
    plan = PLANS[name]
    state = contributed(plan, states.join(plan, "d"), 0)
    after, effects = asked(plan, state, honest(plan, 3, **changes))
    refused = refusal(effects)
    assert refused is not None
    assert (refused.code, after is state) == ("E-INVITE", True)
    assert len(refused.reason) < 200


def test_a_clip_that_follows_the_updates_is_taken_as_far_as_it_can_have_come() -> None:
    plan, state = PLANS["following"], states.join(PLANS["following"], "d")
    for clip in (math.exp(-0.3), 1.0, math.exp(0.3), math.exp(0.3) * (1 + 1e-9)):
        assert refusal(asked(plan, state, honest(plan, 3, clip=clip))[1]) is None
    assert plan.clips(0) == (1.0, 1.0)
    assert all(0 < c < math.inf for c in plan.clips(10**9) or ()), "however many rounds"


def test_another_processors_cosine_is_no_lie_and_is_not_trained_by() -> None:
    plan = plan_with_cosine()
    for number in range(plan.rounds):
        near = rule(plan, number, lr=plan.rule(number).lr * (1 + 1e-12))
        _, effects = asked(plan, states.join(plan, "d"), honest(plan, number, rule=near))
        assert effects[0].request.rule == plan.rule(number) != near
        far = rule(plan, number, lr=plan.rule(number).lr * (1 + 1e-6))
        assert refusal(asked(plan, states.join(plan, "d"), honest(plan, number, rule=far))[1]) is not None


def plan_with_cosine() -> Plan:
    return plan("none", training={"schedule": "cosine"})


@pytest.mark.parametrize("name", ["none", "hidden", "two servers"])
def test_the_model_is_the_one_that_the_invitation_names(name: str) -> None:
    """Two devices that train from two models in one masked session would reveal something about one of them."""
    plan, other = PLANS[name], np.full(64, 7, np.float32)
    for params in (other, other[:63], other.astype(np.float64), np.zeros((8, 8), np.float32)):
        state = states.join(plan, "d")
        after, effects = asked(plan, state, device_events.Invited(invitation(plan), params, SECRETS))
        refused = refusal(effects)
        assert refused is not None
        assert (refused.code, after is state) == ("E-BLOB", True)
    assert refusal(asked(plan, states.join(plan, "d"), invited(plan, params=other))[1]) is None
    other[5] = np.nan
    refused = refusal(asked(plan, states.join(plan, "d"), invited(plan, params=other))[1])
    assert refused is not None
    assert refused.code == "E-NAN"


def test_the_support_is_the_one_that_the_invitation_names() -> None:
    plan, at = PLANS["support"], np.array([1, 5, 9], np.int64)
    named = vector.digest(pack.pack_support(at, 64))
    none = np.zeros(0, np.int64)
    for support, positions in ((named, at + 1), (named, none), (named, None), (None, at), (None, None), ("0" * 64, at)):
        refused = refusal(asked(plan, states.join(plan, "d"), told(plan, support, positions))[1])
        assert refused is not None, (support, positions)
        assert refused.code == "E-BLOB"
    assert refusal(asked(plan, states.join(plan, "d"), told(plan, named, at))[1]) is None
    assert refusal(asked(PLANS["none"], states.join(PLANS["none"], "d"), told(PLANS["none"], None, at))[1]) is not None


def told(plan: Plan, digest: str | None, support: Any) -> device_events.Invited:
    zeros = np.zeros(64, np.float32)
    message = msgspec.structs.replace(invitation(plan), support=digest)
    return device_events.Invited(message, zeros, SECRETS, support)


def test_a_lie_ends_no_session() -> None:
    plan = PLANS["hidden"]
    state = contributed(plan, states.join(plan, "d"), 0)
    assert isinstance(state, states.InSecAgg)
    for event in (honest(plan, 10**15), device_events.Unready(invitation(plan, 1), "E-STALE", "")):
        after, effects = asked(plan, state, event)
        assert after is state
        assert refusal(effects) is not None
    after, effects = asked(plan, state, honest(plan, 1))
    assert refusal(effects) is None, "an honest one does"
    assert isinstance(after, states.Training)


@pytest.mark.long
@given(data=st.data())
def test_letters_of_any_kind(data: st.DataObject) -> None:
    plan = PLANS["hidden"]
    state = contributed(plan, states.join(plan, "d"), 0)
    letter = frame.Step(
        run=data.draw(st.just(plan.run) | HEX), round=data.draw(st.just(0) | INTEGERS),
        rung=data.draw(st.none() | NUMBERS), device=data.draw(st.just("d") | st.text(max_size=5)),
        body=data.draw(st.binary(max_size=200)),
    )  # fmt: skip
    message = frame.load(frame.dump(letter))
    assert isinstance(message, frame.Step)
    after, effects = machine.step(plan, state, device_events.Delivered(message), simulated_trust(plan.key))
    if (letter.run, letter.round, letter.device) != (plan.run, 0, "d"):
        assert (after is state, effects) == (True, ())
    else:
        assert isinstance(after, states.Idle | states.InSecAgg)


@pytest.mark.parametrize("word", ["none", "hidden", "local_dp", "example", "central_dp"])
def test_secrets_come_from_the_driver(word: str) -> None:
    """No public part of the plan decides a device's noise. The same recipe with other secrets gives other noise."""
    plan, other = PLANS[word], Secrets.of(bytes(32))
    sent, fits = [], []
    for secrets in (SECRETS, other, SECRETS):
        state, (train,) = asked(plan, states.join(plan, "d"), honest(plan, secrets=secrets))
        fits.append(train.request)
        _, effects = asked(plan, state, device_events.Trained(Update(X, {}, 10.0)))
        sent.append(effects[-1].frame)
    assert sent[0] == sent[2], "asked again with the same secrets it sends the same bytes"
    assert fits[0].key == fits[1].key, "the order of batches is public"
    assert fits[0].secret == fits[2].secret != fits[1].secret
    assert (sent[0] != sent[1]) == (word in ("hidden", "local_dp"))


@pytest.mark.parametrize("entropy", [b"", bytes(31), bytes(33)])
def test_a_driver_cannot_forget_them(entropy: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Secrets.of(entropy)
    with pytest.raises(ValueError, match="32 bytes"):
        Secrets(bytes(32), entropy, bytes(32))
    with pytest.raises(TypeError):
        device_events.Invited(invitation(PLANS["none"]), X)  # type: ignore[call-arg]
