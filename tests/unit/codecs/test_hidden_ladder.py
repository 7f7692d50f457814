"""Adaptive codec under secure aggregation: groups of one rung, bound to it, and uploads that fit each device's time."""

from __future__ import annotations

from itertools import combinations, pairwise
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invited import invitation, invited
from session import IDENTITIES, SID, Session, registry

from edgewise.core import frame
from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import derive, root
from edgewise.core.memory import Memory
from edgewise.core.stage import Aggregate, together
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.engine.ports import Trust
from edgewise.engine.rung_groups import sort_by_rung
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.codec_choice.rungs import MASKED_RUNGS
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.secagg import client, messages, server
from edgewise.secagg.params import Params, TrustPolicy

SPEC = Spec.of([("a", (50_000,), "float32"), ("b", (70_000,), "float32")])
PLAIN: dict[str, Any] = {
    "privacy": "hidden",
    "codec": "adaptive",
    "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "weigh"}, {"kind": "clip", "l2": 2.0}],
    "round": {"deadline_s": 20.0, "minimum": 0.5},
}
KEY = root(3)


def plan_of(**changes: Any) -> Plan:
    return compile(from_plain({**PLAIN, **changes}), SPEC, 12, BUILT_IN)


def test_every_rung_is_a_way_of_its_own() -> None:
    plan = plan_of()
    assert list(plan.rungs) == [rung.name for rung in MASKED_RUNGS]
    assert all(a > b for a, b in pairwise(plan.sizes))
    assert plan.pipelines == plan.rung_pipelines[:1]
    for rung, way in enumerate(plan.rung_pipelines):
        assert way.merge.blind
        assert (
            way.encoded.quorum.n_min == 5
        )  # (3 + 1) / 0.8: one device of 12 may be corrupt, and a tenth may drop out.
        assert way.encoded.quorum.n_max == 12  # All devices may ask for the same rung.
        assert way.totals[0].sensitivity < inf
        assert plan.secagg(0, rung).rung == rung
        assert plan.answer_bytes(0, messages.dump(messages.BoxesMessage(boxes={})), rung) == plan.sizes[rung]
    assert plan.secagg(0, 0).policy.corrupt == 1 / 5  # All corrupt devices of a cohort may be in one group.
    assert plan_of(adaptive={"groups": 1}).rung_pipelines[0].encoded.quorum.n_min == 6
    found = explain.ladder(plan_of(adaptive={"deadline_s": 0.5}))
    assert found is not None
    assert [r["bytes"] for r in found["rungs"]] == list(plan.sizes)
    assert len({link["rung"] for link in found["links"]}) > 2
    # Training has the round's 20 s, the upload half a second of its own.
    assert [link["late"] for link in found["links"]] == [
        link["down_s"] + link["train_s"] > 20 for link in found["links"]
    ]


@pytest.mark.parametrize(
    ("name", "share"), [("masked 4 bit", 1.0), ("masked 25 %, 8 bit", 1.0), ("masked 1 %, 8 bit", 0.2)]
)
def test_what_a_rung_sends_stands_for_all(name: str, share: float) -> None:
    """An update at the clip arrives at its length, also through a random choice of its coordinates.

    With 1 % of the coordinates, stretched at most 20 times, a fifth of the length arrives.
    """
    plan = plan_of()
    way = plan.rung_pipelines[plan.rungs.index(name)]
    x = np.random.default_rng(5).standard_normal(SPEC.dim)
    x = (2.0 * x / np.linalg.norm(x)).astype(np.float32)
    payload, memory = way.encode(x, {"loss_first": 1.0, "loss_last": 1.0}, 65536.0, Memory(), plan.turn(0, KEY))
    released, _ = way.release(way.add(way.start_sum(), payload, plan.turn(0)), plan.turn(0), KEY, Memory())
    assert float(released.mean @ x / (x @ x)) == pytest.approx(share, rel=0.1)
    assert not memory


@pytest.mark.parametrize(
    ("code", "said", "changes"),
    [
        ("E-NO-BOUND", "clip", {"stage": [{"kind": "weigh"}]}),
        ("E-COMBO", "secure_sum", {"merge": {"kind": "shared_sum"}}),
        ("E-COMBO", "secure_sum", {"merge": {"kind": "grouped", "groups": 3}}),
        ("E-COMBO", "adaptive.groups", {"privacy": "none", "merge": {"kind": "sum"}, "adaptive": {"groups": 2}}),
        (
            "E-COMBO",
            "hidden rungs",
            {
                "privacy": "distributed_dp",
                "metrics": "none",
                "stage": [],
                "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0},
            },
        ),
        ("E-NMIN", "may be corrupt", {"round": {"deadline_s": 20.0, "minimum": 0.25}}),
        ("E-NAME", "masked 8 bit", {"adaptive": {"ladder": ["8 bit"]}}),
        ("E-RUNG", "smallest rung", {"adaptive": {"max_upload_mb": 1e-5}}),
        ("E-ORDER", "ladder chooses", {"stage": [*PLAIN["stage"], {"kind": "rotate"}, {"kind": "quantize"}]}),
    ],
)
def test_refused(code: str, said: str, changes: dict[str, Any]) -> None:
    with pytest.raises(EdgewiseError, match=said) as caught:
        plan_of(**changes)
    assert caught.value.code == code


bests = st.lists(st.integers(0, 5), min_size=1, max_size=9)


@given(bests, st.integers(1, 4), st.integers(1, 4))
def test_groups_are_large_enough_few_enough_and_the_best_there_are(best: list[int], groups: int, least: int) -> None:
    asked = {f"d{i}": rung for i, rung in enumerate(best)}
    sizes = (1000.0, 500.0, 200.0, 50.0, 20.0, 1.0)
    dealt = sort_by_rung(asked, sizes, groups, least, KEY)
    assert sorted(d for _, devices in dealt for d in devices) == sorted(asked)
    assert len(dealt) <= groups
    assert len({rung for rung, _ in dealt}) == len(dealt)
    assert len(dealt) == 1 or all(len(devices) >= least for _, devices in dealt)
    for rung, devices in dealt:
        assert rung == max(asked[d] for d in devices)  # the slowest member's

    slowest = sorted(best, reverse=True)
    n = len(best)
    possible = [0.0] + [
        sum((stop - start) * sizes[slowest[start]] for start, stop in pairwise((0, *cuts, n)))
        for count in range(groups)
        for cuts in combinations(range(1, n), count)
        if count == 0 or all(stop - start >= least for start, stop in pairwise((0, *cuts, n)))
    ]
    assert sum(len(devices) * sizes[rung] for rung, devices in dealt) == max(possible)


def test_who_goes_with_the_slow_is_drawn() -> None:
    asked = {"slow": 3, **{f"d{i}": 0 for i in range(9)}}
    with_it = {
        frozenset(dict(sort_by_rung(asked, (9.0, 4.0, 2.0, 1.0), 2, 3, derive(KEY, i)))[3]) - {"slow"}
        for i in range(20)
    }
    assert len(with_it) > 5


def test_nobody_can_be_alone_with_another_by_asking_for_a_small_rung() -> None:
    plan = plan_of()
    asked = {"victim": 5, "spy": 9, **{f"d{i}": 0 for i in range(10)}}
    least = plan.secagg(0, 0).n_min
    for i in range(50):
        dealt = sort_by_rung(asked, plan.sizes, plan.recipe.adaptive.groups, least, derive(KEY, i))
        assert min(len(devices) for _, devices in dealt) >= 4


def test_means_of_groups_count_by_their_weight() -> None:
    a = Aggregate(np.array([1.0, 0.0], np.float32), {"loss": 2.0}, 3, 30.0)
    b = Aggregate(np.array([0.0, 4.0], np.float32), {"loss": 6.0}, 2, 10.0)
    both = together([a, b])
    np.testing.assert_allclose(both.mean, [0.75, 1.0])
    assert (both.head, both.n, both.weight) == ({"loss": 3.0}, 5, 40.0)
    assert together([a]) is a
    none = Aggregate(np.zeros(2, np.float32), {"loss": 0.0}, 1, 0.0)
    assert together([none, none]).weight == 0.0
    with pytest.raises(ValueError, match="no part"):
        together([])


def trained(
    plan: Plan, up_mbit: float, x: np.ndarray, head: dict[str, float]
) -> tuple[states.State, frame.Message, Trust]:
    """A device that has trained: its state, and what it sends."""
    trust = Trust(registry, lambda d: IDENTITIES[d].secret)
    state: states.State
    state, _ = machine.step(plan, states.join(plan, "d000"), invited(plan))
    update = Update(x, head, 10.0)
    state, effects = machine.step(plan, state, device_events.Trained(update, 1.0, up_mbit), trust)
    send = effects[-1]
    assert isinstance(send, device_events.SendFrame)
    return state, frame.load(send.frame), trust


def asked(plan: Plan, up_mbit: float = 0.03) -> tuple[states.State, frame.Step, Trust]:
    """Make a device that has sent its keys. A trainer may return numbers of NumPy."""
    x = np.random.default_rng(0).standard_normal(SPEC.dim).astype(np.float32)
    state, sent, trust = trained(plan, up_mbit, x, {"loss_first": np.float64(1.0), "loss_last": np.float64(1.0)})
    assert isinstance(sent, frame.Step)
    return state, sent, trust


@pytest.mark.parametrize(("at", "loss"), [(7, 1.0), (-1, np.nan)])
def test_an_update_that_cannot_be_encoded_is_refused_before_the_keys(at: int, loss: float) -> None:
    x = np.zeros(SPEC.dim, np.float32)
    x[at] = np.inf if at >= 0 else 0.0
    state, sent, _ = trained(plan_of(), 1.0, x, {"loss_first": loss, "loss_last": 1.0})
    assert isinstance(state, states.Idle)
    assert isinstance(sent, frame.Refusal)
    assert sent.code == "E-NAN"


def test_an_upload_has_the_time_of_its_own_message() -> None:
    """Keys are sent when training is done, and the update when those of all are in."""
    plan = plan_of()
    assert plan.budget_bytes(0.0, 0.03) == plan.budget_bytes(19.9, 0.03) == 0.03e6 / 8 * 18.0
    visible = plan_of(privacy="none", merge={"kind": "sum"}, stage=[{"kind": "weigh"}])
    assert visible.budget_bytes(19.9, 0.03) == 0.0


def roster(plan: Plan, sent: frame.Step, rung: int) -> frame.Step:
    """A roster with the device and four others."""
    mine = messages.load_secagg_message(sent.body)
    assert isinstance(mine, messages.AdvertiseMessage)
    keys = {"d000": mine.keys}
    session = plan.session(invitation(plan))
    for d in ("d001", "d002", "d003", "d004"):
        _, raw = client.advertise(plan.secagg(0, 0), session, d, IDENTITIES[d].secret, derive(KEY, "entropy", d))
        other = messages.load_secagg_message(raw)
        assert isinstance(other, messages.AdvertiseMessage)
        keys[d] = other.keys
    body = messages.dump(messages.RosterMessage(keys=keys))
    return frame.Step(run=plan.run, round=0, device="d000", body=body, rung=rung)


def test_a_device_asks_for_what_it_has_time_for_and_encodes_by_its_groups_rung() -> None:
    plan = plan_of()
    state, sent, trust = asked(plan)
    assert sent.rung == plan.best(1.0, 0.03) > 0
    assert plan.sizes[sent.rung] <= plan.budget_bytes(1.0, 0.03) < plan.sizes[sent.rung - 1]
    assert len(frame.dump(sent)) < 600  # keys, and nothing of the update
    for rung in (sent.rung, len(plan.rung_pipelines) - 1):
        restored = states.resumed(states.join(plan, "d000"), states.session_of(state))
        after, effects = machine.step(plan, restored, device_events.Delivered(roster(plan, sent, rung)), trust)
        assert effects[0] == device_events.Save(after), "before the shares leave"
        assert isinstance(after, states.InSecAgg)
        assert (after.rung, after.unsent) == (rung, None)
        assert isinstance(after.client, client.Sharing)
        assert len(after.client.body) == 4 * plan.rung_pipelines[rung].encoded.dim
        assert states.resumed(after.idle, states.session_of(after)) == after


@pytest.mark.parametrize("rung", [None, 0, 10, 99])
def test_a_rung_that_was_not_asked_for_ends_the_session(rung: int | None) -> None:
    """A server cannot make a device send more than the device offered, or use a rung that does not exist."""
    plan = plan_of()
    state, sent, trust = asked(plan)
    after, effects = machine.step(plan, state, device_events.Delivered(roster(plan, sent, rung)), trust)
    assert isinstance(after, states.Idle)
    assert after.pending is None
    send = effects[-1]
    assert isinstance(send, device_events.SendFrame)
    answer = frame.load(send.frame)
    assert isinstance(answer, frame.Step)
    assert messages.load_secagg_message(answer.body) == messages.Abort(code="E-RUNG")


def test_nothing_of_a_waiting_update_is_printed() -> None:
    state, _, _ = asked(plan_of())
    assert isinstance(state, states.InSecAgg)
    assert state.unsent is not None
    assert "x=<480000 bytes>" in repr(state)
    assert len(repr(state)) < 500


def test_masks_of_devices_that_were_told_different_rungs_do_not_cancel() -> None:
    """A device that was told another rung, of the same ring and dimension, is refused.

    Its signature and its masks are bound to its rung.
    """
    params = [Params(TrustPolicy(), 2, 20, 5, 1, rung) for rung in (0, 1)]
    assert len({p.bound(SID) for p in [*params, Params(TrustPolicy(), 2, 20, 5, 1)]}) == 3
    s = Session(4)
    s.params = params[0]
    s.server = server.start(server.SecAggSession(params[0], SID, registry))
    for d, raw in s.advertise():
        s.give(d, raw)
    mail = s.close()
    letters = [letter for d, raw in mail for letter in s.give(d, s.answer(d, raw))]
    liar = letters[0][0]
    for d, raw in letters:
        s.params = params[d == liar]
        s.give(d, s.answer(d, raw))
    assert s.refused == [(liar, "E-SECAGG-KEYS")]
