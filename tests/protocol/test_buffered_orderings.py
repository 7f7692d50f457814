"""Asynchronous rounds over any order, loss and duplication: the sum equals its definition, and nothing counts twice.

The machine of a round and the aggregation in the clear play several rounds. A model beside them, a few lines long, says
what must have been added.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long import examples
from toy_recipe import make_recipe

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.keys import Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.vector import Spec
from edgewise.engine import outstanding
from edgewise.engine import round as machine
from edgewise.engine.aggregation import PlainAggregation
from edgewise.engine.checkpoint import Standing
from edgewise.engine.coordinator import first
from edgewise.engine.outstanding import Work
from edgewise.engine.ports import Began
from edgewise.engine.round_facts import decide
from edgewise.engine.round_states import Answered, Closed, Deadline, Fold, Gone, ReportLoss, Usable
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan

DIM, DEVICES, ROUNDS = 7, tuple(f"d{i}" for i in range(9)), 7
SETTINGS = {
    "data.devices": len(DEVICES),
    "round.rounds": ROUNDS,
    "round.sampling": "buffered",
    "round.cohort": 3,
    "buffer.concurrency": 6,
    "buffer.max_staleness": 2,
    "buffer.damping": 0.5,
    "stage": [{"kind": "weigh", "cap": 10}, {"kind": "random_k", "fraction": 0.6}],  # Positions differ by round.
    "strategy": {"kind": "fedavg"},
}


def compiled(**changes):
    return compile_plan(make_recipe({**SETTINGS, **changes}), Spec.of([("w", (DIM,), "float32")]), 9, BUILT_IN)


PLAN = compiled()


def contribution(device, version):
    """What a device sends that was invited to ``version``, and what the server must make of it."""
    x = np.random.default_rng((int(device[1:]), version)).normal(size=DIM).astype(np.float32)
    turn, pipe = Turn(version, PLAN.public(version), derive(PLAN.key, device)), PLAN.at(version)
    count = 1.0 + int(device[1:])
    payload, _ = pipe.encode(x, {"loss_first": 2.0, "loss_last": 1.0}, count, Memory(), turn)
    body = pack.pack(payload, pipe.encoded)
    message = frame.Contribution(run=PLAN.run, round=version, device=device, payload=memoryview(body))
    decoded = pipe.decode(pack.unpack(body, pipe.encoded), turn)
    return message, decoded.body.astype(np.float64), min(10.0, count) / 10


# A device answers to the round of its invitation, to another one, again, or is lost. Then the deadline passes.
MOVES = st.tuples(st.sampled_from(DEVICES), st.sampled_from([None, None, None, 0, 1, 2]), st.sampled_from([0, 0, 0, 1]))
SCRIPTS = st.lists(st.lists(MOVES, max_size=14), min_size=ROUNDS, max_size=ROUNDS)


def played(scripts, plan=PLAN):
    """Play rounds with a scripted order of events. Yields (round, work before, facts, closed, folded, aggregation)."""
    checkpoint, work = first(plan, np.zeros(DIM, np.float32)), Work()
    for number in range(ROUNDS):
        began_s = work.clock_s
        memory = checkpoint.memory if number == 0 else outstanding.save(checkpoint.memory, work)
        checkpoint = replace(checkpoint, next_round=number, memory=memory)
        invited = outstanding.replacements(plan.sampling.buffer, DEVICES, work, plan.key, number)
        began = Began(began_s, "attempt", None, plan.key, invited)
        facts = decide(plan, checkpoint, began, dict.fromkeys(invited, Standing()))
        sums, folded = PlainAggregation(facts), []
        state, effects = machine.start(
            number, frozenset(invited), facts.policy, None, facts.letters.frames, facts.versions,
            [one.device for one in facts.outdated],
        )  # fmt: skip
        told = [e.device for e in effects if isinstance(e, ReportLoss)]
        assert told == [one.device for one in facts.outdated]
        script = iter(scripts[number])
        while not isinstance(state, Closed):
            event = Deadline(facts.policy.deadline_at_s + 1.0)
            if (move := next(script, None)) is not None:
                device, back, lost = move
                version = facts.version(device) if back is None else max(0, number - back)
                event = Gone(device, version, "dropped")
                if not lost:
                    event = Answered(device, version, contribution(device, version)[0])
            wanted, before = machine.wanted(state, event), state
            state, effects = machine.step(state, event)
            assert wanted or state == before
            for effect in effects:
                if isinstance(effect, Fold):
                    rung = sums.fold(effect.device, effect.message)
                    folded.append((effect.device, effect.message.round))
                    state, _ = machine.step(state, Usable(effect.device, effect.message.round, rung))
        yield number, work, facts, state, folded, sums
        work = outstanding.after(work, facts, state, began_s + 1.0, plan.sampling.buffer.rest)


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(SCRIPTS)
def test_the_sum_is_the_sum_of_the_damped_contributions_by_definition(scripts):
    for number, _, _, closed, folded, sums in played(scripts):
        assert [device for device, _ in folded] == list(closed.accepted)
        if not closed.met:
            continue
        ((_, total),) = sums.sums(closed)
        body, weight = np.zeros(DIM), 0.0
        for device, version in folded:
            _, decoded, share = contribution(device, version)
            body += float(np.float32((1 + number - version) ** -0.5)) * decoded
            weight += share
        aggregate, _ = PLAN.at(number).release(total, Turn(number, PLAN.public(number)), PLAN.key, Memory())
        np.testing.assert_allclose(aggregate.mean, body / weight, rtol=1e-5, atol=1e-6)
        assert aggregate.weight == pytest.approx(weight)
        assert aggregate.head["loss_first"] == pytest.approx(2.0)  # Staleness damps updates, and no metric.


@pytest.mark.slow
@settings(max_examples=examples(60), deadline=None)
@given(SCRIPTS)
def test_nothing_counts_twice_and_nothing_beyond_the_window(scripts):
    counted, rule = Counter(), PLAN.sampling.buffer
    for number, before, facts, closed, folded, _ in played(scripts):
        for device, version in folded:
            assert 0 <= number - version <= rule.max_staleness
            assert version == facts.version(device)
            counted[device, version] += 1
        assert len(folded) <= PLAN.sampling.goal
        outdated = {one.device for one in before.outstanding if number - one.version > rule.max_staleness}
        assert {device for device, code in closed.lost if code == "E-OUTDATED"} == outdated
        assert not outdated & {device for device, _ in folded}
    assert not counted or max(counted.values()) == 1


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(SCRIPTS)
def test_a_device_has_one_invitation_and_as_many_train_as_may(scripts):
    for _, before, facts, closed, _, _ in played(scripts):
        carried, new = {one.device for one in facts.carried}, set(facts.letters.frames)
        assert not new & {one.device for one in before.outstanding}
        free = len(DEVICES) - len({one.device for one in before.outstanding})
        assert len(carried | new) == min(6, len(carried) + free)
        assert set(closed.late) == (carried | new) - {*closed.accepted, *(device for device, _ in closed.lost)}


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(SCRIPTS, st.integers(1, 2))
def test_rest_bounds_how_often_a_device_contributes(scripts, rest):
    plan, last = compiled(**{"buffer.rest": rest}), {}
    for number, _, _, closed, folded, _ in played(scripts, plan):
        for device, _ in folded if closed.met else ():
            assert number - last.get(device, -rest) >= rest
            last[device] = number


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(SCRIPTS, st.integers(1, 2))
def test_no_device_is_invited_before_the_rest_that_it_insists_on(scripts, rest):
    """Its update may have left, also where it was lost, was too slow, or its round was abandoned."""
    plan, last = compiled(**{"buffer.rest": rest}), {}
    for number, _, facts, *_ in played(scripts, plan):
        for device in facts.letters.frames:
            assert number - last.get(device, -rest) >= rest
            last[device] = number


def test_the_record_survives_a_checkpoint():
    one = outstanding.Outstanding("d1", 3, 1.5, 400, b"frame")
    work = Work(2.5, (one,), {"d2": 4})
    memory = outstanding.save(Memory({"other": np.ones(1, np.float32)}), work)
    assert outstanding.load(memory) == work
    assert vector.to_bytes(memory["other"])
    assert outstanding.load(Memory()) == Work()
