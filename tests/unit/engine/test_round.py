"""The round machine under every order of answers, losses, duplicates and deadlines."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgewise.engine.round import LATE, start, step
from edgewise.engine.round_states import (
    Charge,
    Close,
    Closed,
    Collecting,
    Counted,
    Deadline,
    Gone,
    Ignore,
    ReportLoss,
    RoundPolicy,
    Usable,
)

DEVICES = tuple(f"d{i}" for i in range(6))
ROUND = 3


def begin(goal: int = 6, minimum: int = 2, invited: tuple[str, ...] = DEVICES):
    return start(ROUND, frozenset(invited), RoundPolicy(goal, minimum, 10.0))[0]


def play(state, *inputs):
    effects = []
    for event in inputs:
        state, more = step(state, event)
        effects.extend(more)
    return state, effects


def test_closes_at_the_goal_and_names_the_late():
    state, effects = play(begin(goal=2), Usable("d0", ROUND), Usable("d1", ROUND))
    assert isinstance(state, Closed)
    assert state.met
    assert state.accepted == ("d0", "d1")
    assert state.late == ("d2", "d3", "d4", "d5")
    assert effects == [Counted("d0"), Counted("d1"), Charge(), Close(True)]


def test_closes_when_nobody_is_outstanding():
    inputs = [Usable("d0", ROUND), Usable("d1", ROUND), *(Gone(d, ROUND, "E-NAN") for d in DEVICES[2:])]
    state, effects = play(begin(), *inputs)
    assert isinstance(state, Closed)
    assert state.met
    assert dict(state.lost) == dict.fromkeys(DEVICES[2:], "E-NAN")
    assert ReportLoss("d2", "E-NAN") in effects


def test_gives_up_as_soon_as_the_minimum_is_out_of_reach():
    state, effects = play(begin(minimum=3), *(Gone(d, ROUND, "dropped") for d in DEVICES[:4]))
    assert isinstance(state, Closed)
    assert not state.met
    assert effects[-1] == Close(False)


def test_too_few_invited_closes_at_once():
    assert isinstance(begin(minimum=2, invited=("d0",)), Closed)


def test_deadline_decides_by_the_minimum():
    early, _ = play(begin(minimum=1), Deadline(9.9))
    assert isinstance(early, Collecting)
    met, _ = play(begin(minimum=1), Usable("d0", ROUND), Deadline(10.0))
    assert isinstance(met, Closed)
    assert met.met
    short, _ = play(begin(minimum=2), Usable("d0", ROUND), Deadline(10.0))
    assert isinstance(short, Closed)
    assert not short.met


def test_refuses_duplicates_strangers_and_other_rounds():
    _, effects = play(begin(), Usable("d0", ROUND), Usable("d0", ROUND), Usable("x", ROUND), Usable("d1", ROUND - 1))
    assert effects == [Counted("d0"), Ignore("d0", "duplicate"), Ignore("x", "uninvited"), Ignore("d1", LATE)]


def test_an_answer_after_a_loss_counts():
    state, effects = play(begin(), Gone("d0", ROUND, "dropped"), Usable("d0", ROUND))
    assert isinstance(state, Collecting)
    assert state.accepted == ("d0",)
    assert state.lost == ()
    assert effects == [ReportLoss("d0", "dropped"), Counted("d0")]


_inputs = st.one_of(
    st.builds(Usable, st.sampled_from((*DEVICES, "stranger")), st.sampled_from((ROUND, ROUND - 1))),
    st.builds(Gone, st.sampled_from((*DEVICES, "stranger")), st.just(ROUND), st.sampled_from(("dropped", "E-NAN"))),
    st.builds(Deadline, st.sampled_from((5.0, 10.0))),
)


@given(st.lists(_inputs, max_size=30), st.integers(1, 6), st.data())
def test_any_order_keeps_the_books(inputs, goal, data):
    minimum = data.draw(st.integers(1, goal))
    state, counted, closed = begin(goal, minimum), [], 0
    for event in inputs:
        before = state
        state, effects = step(state, event)
        counted += [e.device for e in effects if isinstance(e, Counted)]
        closed += sum(isinstance(e, Close) for e in effects)
        if isinstance(before, Closed):
            assert state == before
            assert not any(isinstance(e, Counted | Close) for e in effects)
        lost = {d for d, _ in state.lost}
        assert tuple(counted) == state.accepted
        assert len(set(counted)) == len(counted) <= goal
        assert set(counted) <= set(DEVICES)
        assert not lost & set(counted)
        if isinstance(state, Closed):
            assert {*state.accepted, *lost, *state.late} == set(DEVICES)
            assert len(state.accepted) + len(lost) + len(state.late) == len(DEVICES)
            assert state.met == (len(state.accepted) >= minimum)
    assert closed == isinstance(state, Closed)


@given(st.permutations(DEVICES), st.permutations(DEVICES))
def test_the_outcome_does_not_depend_on_the_order_when_all_answer(a, b):
    one, _ = play(begin(), *(Usable(d, ROUND) for d in a))
    two, _ = play(begin(), *(Usable(d, ROUND) for d in b))
    assert isinstance(one, Closed)
    assert isinstance(two, Closed)
    assert set(one.accepted) == set(two.accepted)
