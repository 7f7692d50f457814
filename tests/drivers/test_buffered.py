"""Asynchronous rounds of a simulation: exact on every executor, after every stop, and within the window."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from played import play, story

from edgewise.core import events
from edgewise.engine.outstanding import load

SETTINGS = {
    "data.devices": 16,
    "round.rounds": 8,
    "round.sampling": "buffered",
    "round.cohort": 3,
    "buffer.concurrency": 9,
    "buffer.max_staleness": 3,
    "simulation.speed_spread": 1.5,
    "simulation.step_s": 1.0,
    "simulation.dropout": 0.1,
    "eval.every": 2,
}
LOCAL_DP = {
    "privacy": "local_dp",
    "metrics": "none",
    "stage": [],
    "dp.epsilon": 50.0,
    "dp.delta": 1e-4,
    "dp.clip_l2": 4.0,
}


CENTRAL_DP = {
    **LOCAL_DP,
    "privacy": "central_dp",
    "buffer.concurrency": 6,
    "buffer.rest": 3,
}


class Stopped(BaseException):
    """Stands for a process that dies."""


class Mortal:
    """A cohort whose server dies when it has received ``life`` times."""

    def __init__(self, cohort, life):
        self._cohort, self._left = cohort, life

    def __getattr__(self, name):
        return getattr(self._cohort, name)

    def receive(self, timeout_s):
        if self._left == 0:
            raise Stopped
        self._left -= 1
        return self._cohort.receive(timeout_s)


def of_kind(told, kind):
    return [e for e in told if isinstance(e, kind)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return play(tmp_path_factory.mktemp("whole") / "run", SETTINGS)


def test_late_contributions_count_in_later_rounds_and_never_beyond_the_window(undisturbed):
    _, told, _ = undisturbed
    accepted = of_kind(told, events.Accepted)
    stale = Counter(e.staleness for e in accepted)
    assert set(stale) <= {0, 1, 2, 3}
    assert len(stale) > 2
    assert {e.code for e in of_kind(told, events.Lost)} == {"dropped", "E-OUTDATED"}
    assert all(e.met and e.accepted == 3 and not e.late for e in of_kind(told, events.RoundFinished))


def test_a_contribution_counts_once_and_a_device_once_a_round(undisturbed):
    _, told, _ = undisturbed
    versions = defaultdict(set)
    for e in of_kind(told, events.Accepted):
        version = e.round - e.staleness
        assert version not in versions[e.device]
        versions[e.device].add(version)
    assert max(Counter((e.round, e.device) for e in of_kind(told, events.Accepted)).values()) == 1


def test_as_many_devices_train_at_any_time_as_the_recipe_says(undisturbed):
    _, told, _ = undisturbed
    started, finished = of_kind(told, events.RoundStarted), of_kind(told, events.RoundFinished)
    at_work = 0
    for began, ended in zip(started, finished, strict=True):
        outdated = [e for e in of_kind(told, events.Lost) if e.round == began.round and e.code == "E-OUTDATED"]
        at_work += began.invited - len(outdated)
        assert at_work == 9
        at_work -= ended.accepted + ended.lost - len(outdated)


@pytest.mark.slow
def test_a_pool_ends_in_the_same_model(undisturbed, tmp_path):
    models, told, _ = play(tmp_path / "pool", {**SETTINGS, "simulation.engine": "pool"})
    assert models == undisturbed[0]
    same = (events.Accepted, events.Lost, events.RoundFinished)
    assert story(of_kind(told, same)) == story(of_kind(undisturbed[1], same))


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("life", [0, 4, 13, 21, 30, 47, 55, 62])
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_model(undisturbed, tmp_path, life):
    with pytest.raises(Stopped):
        play(tmp_path / "run", SETTINGS, wrap=lambda cohort: Mortal(cohort, life))
    models, told, _ = play(tmp_path / "run", SETTINGS, resume=True)
    assert models == undisturbed[0]
    ends = {e.round: (e.accepted, e.lost, e.waited_s, e.model) for e in of_kind(undisturbed[1], events.RoundFinished)}
    for e in of_kind(told, events.RoundFinished):
        assert (e.accepted, e.lost, e.waited_s, e.model) == ends[e.round]


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_in_the_same_model(undisturbed, tmp_path):
    models, stops = {}, 0
    while not models:
        try:  # The longest part that cannot resume halfway is an evaluation of 16 devices.
            models, *_ = play(tmp_path / "run", SETTINGS, wrap=lambda cohort: Mortal(cohort, 19), resume=stops > 0)
        except Stopped:
            stops += 1
            assert stops < 30
    assert stops >= 4
    assert models == undisturbed[0]


@pytest.mark.slow
def test_resting_devices_leave_so_many_rounds_between_two_contributions(tmp_path):
    settings = {**SETTINGS, "data.devices": 24, "buffer.rest": 4, "round.rounds": 12}
    _, told, _ = play(tmp_path / "run", settings)
    last = {}
    for e in of_kind(told, events.Accepted):
        assert e.round - last.get(e.device, -4) >= 4
        last[e.device] = e.round


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["inproc", "pool"])
def test_noise_of_devices_leaves_once_also_after_a_stop(tmp_path, engine):
    settings = {**SETTINGS, **LOCAL_DP, "simulation.engine": engine}
    models, told, _ = play(tmp_path / "whole", settings)
    assert {e.code for e in of_kind(told, events.Lost)} <= {"dropped", "E-OUTDATED"}
    with pytest.raises(Stopped):
        play(tmp_path / "run", settings, wrap=lambda cohort: Mortal(cohort, 40))
    assert play(tmp_path / "run", settings, resume=True)[0] == models


def test_the_record_of_devices_at_work_is_in_the_checkpoint(undisturbed, tmp_path):
    from edgewise.drivers.storage.run_store import RunStore

    play(tmp_path / "run", {**SETTINGS, "round.rounds": 2})
    with RunStore(tmp_path / "run") as store:
        work = load(store.memory(2))
    assert work.clock_s > 0.0
    assert len(work.outstanding) < 9
    assert all(one.version in (0, 1) for one in work.outstanding)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"stage": [{"kind": "weigh"}, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.1}]},
        {"codec": "adaptive", "stage": []},
        CENTRAL_DP,
        {**CENTRAL_DP, "dp.noise": "correlated"},
        {"strategy": {"kind": "fedadam", "lr": 0.01}},
    ],
    ids=["feedback", "adaptive", "central", "correlated", "fedadam"],
)
def test_what_composes_is_exact_after_a_stop(tmp_path, changes):
    settings = {**SETTINGS, **changes}
    models, told, _ = play(tmp_path / "whole", settings)
    assert len({e.staleness for e in of_kind(told, events.Accepted)}) > 1
    with pytest.raises(Stopped):
        play(tmp_path / "run", settings, wrap=lambda cohort: Mortal(cohort, 33))
    assert play(tmp_path / "run", settings, resume=True)[0] == models


@pytest.mark.slow
def test_the_ledger_counts_the_most_rounds_of_a_device_also_where_rounds_were_abandoned(tmp_path):
    from edgewise.drivers.storage.run_store import RunStore

    rare = {"data.devices": 40, "buffer.rest": 2, "round.minimum": 1.0, "round.rounds": 14, "seed": 4}
    settings = {**SETTINGS, **CENTRAL_DP, "simulation.dropout": 0.5, **rare}
    _, told, _ = play(tmp_path / "run", settings)
    met = [e.round for e in of_kind(told, events.RoundFinished) if e.met]
    assert len(met) < 14
    most, free_from = 0, 0
    for round in met:  # the earliest rounds that lie two apart are the most of them
        if round >= free_from:
            most, free_from = most + 1, round + 2
    with RunStore(tmp_path / "run") as store:
        charges = store.charges()
    assert [c.round for c in charges] == met
    assert max(Counter(c.cohort for c in charges).values()) == most
    assert most > max(Counter(round % 2 for round in met).values())  # turns would have counted too few
