"""The same seeded run gives the same model bytes, and the same story, wherever the devices run."""

from __future__ import annotations

from collections import Counter

import pytest
from played import play, story

from edgewise.core import events
from edgewise.drivers.simulation.faults import Faulty, ScriptedFault

SETTINGS = {
    "everybody": {},
    "fixed cohort, drop-outs": {
        "round.sampling": "fixed",
        "round.cohort": 4,
        "simulation.dropout": 0.2,
        "round.minimum": 0.25,
    },
    "poisson": {"round.sampling": "poisson", "round.cohort": 4, "round.minimum": 0.25},
    "deadline": {"round.deadline_s": 0.9, "round.minimum": 0.1, "simulation.speed_spread": 1.0},
    "adaptive": {
        "codec": "adaptive",
        "stage": [{"kind": "weigh", "cap": 160}],
        "round.deadline_s": 2.0,
        "simulation.link_mbit": 0.002,
        "simulation.link_down": 20.0,
        "simulation.link_low_mbit": 0.0005,
        "simulation.link_spread": 1.0,
    },
    "prox, plain update": {"strategy": {"kind": "fedprox", "mu": 0.1}, "stage": [{"kind": "weigh"}]},
}


@pytest.mark.long(sample=3)
@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_pool_and_inproc_agree_to_the_byte(tmp_path, name):
    one, told_one, held_one = play(tmp_path / "a", {"simulation.engine": "inproc", **SETTINGS[name]})
    two, told_two, held_two = play(tmp_path / "b", {"simulation.engine": "pool", **SETTINGS[name]})
    assert one == two
    assert held_one == held_two
    assert story(told_one) == story(told_two)


@pytest.mark.long(sample=3)
@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_model_learns_and_a_seed_matters(tmp_path, name):
    models, told, held = play(tmp_path / "a", SETTINGS[name])
    again, _, _ = play(tmp_path / "b", SETTINGS[name])
    other, _, _ = play(tmp_path / "c", {**SETTINGS[name], "seed": 1})
    assert models == again
    assert models[4] != other[4]
    base = next(e for e in told if isinstance(e, events.Evaluated) and e.model == "base")
    assert sum(nll for nll, _ in held.values()) < sum(base.nll.values())


@pytest.mark.slow
def test_late_devices_are_counted_and_not_waited_for(tmp_path):
    _, told, _ = play(tmp_path, SETTINGS["deadline"])
    rounds = [e for e in told if isinstance(e, events.RoundFinished)]
    assert sum(r.late for r in rounds) > 0
    assert all(r.accepted + r.lost + r.late == 8 for r in rounds)


@pytest.mark.slow
def test_over_selection_invites_more_than_it_waits_for(tmp_path):
    _, told, _ = play(tmp_path, {"round.sampling": "fixed", "round.cohort": 5})
    starts = [e for e in told if isinstance(e, events.RoundStarted)]
    assert {(s.invited, s.goal) for s in starts} == {(7, 5)}
    accepted = Counter(e.round for e in told if isinstance(e, events.Accepted))
    assert set(accepted.values()) == {5}


@pytest.mark.slow
def test_a_failing_device_is_lost_and_shown_and_never_averaged(tmp_path, monkeypatch):
    plain = {"stage": [{"kind": "weigh"}]}
    monkeypatch.setenv("TOY_FAIL", "d00003")
    _, told, _ = play(tmp_path / "a", plain)
    lost = [e for e in told if isinstance(e, events.Lost)]
    assert [(e.device, e.code) for e in lost] == [("d00003", "E-DEVICE-DATA")] * 4
    assert all("has no text" in e.reason for e in lost)
    assert not any(isinstance(e, events.Accepted) and e.device == "d00003" for e in told)
    assert all(e.accepted == 7 and e.lost == 1 for e in told if isinstance(e, events.RoundFinished))
    local = next(e for e in told if isinstance(e, events.Evaluated) and e.model == "local_only")
    assert "d00003" not in local.nll


def test_an_update_with_nan_is_a_lost_device(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_NAN", "d00002")
    _, told, _ = play(tmp_path, {"compare.local_only": False})
    assert {(e.device, e.code) for e in told if isinstance(e, events.Lost)} == {("d00002", "E-NAN")}


@pytest.mark.slow
def test_duplicates_and_corruption_on_the_way_change_nothing_or_are_counted(tmp_path):
    clean, _, _ = play(tmp_path / "a", {})
    twice, _, _ = play(tmp_path / "b", {}, wrap=lambda c: Faulty(c, lambda device, n: ScriptedFault(copies=2)))
    assert clean == twice
    script = lambda device, n: ScriptedFault(corrupt=device == "d00001")  # noqa: E731
    bent, told, _ = play(tmp_path / "c", {}, wrap=lambda c: Faulty(c, script))
    assert bent[4] != clean[4]
    lost = [e for e in told if isinstance(e, events.Lost)]
    assert {e.device for e in lost} == {"d00001"}
    assert {e.code for e in lost} <= {"E-FRAME", "E-PAYLOAD"}


@pytest.mark.slow
def test_silent_loss_ends_at_the_deadline(tmp_path):
    script = lambda device, n: ScriptedFault(lose=device == "d00004")  # noqa: E731
    _, told, _ = play(tmp_path, {"compare.local_only": False}, wrap=lambda c: Faulty(c, script))
    rounds = [e for e in told if isinstance(e, events.RoundFinished)]
    assert all((e.accepted, e.late) == (7, 1) for e in rounds)


@pytest.mark.slow
def test_reordering_by_delay_gives_the_same_sum(tmp_path):
    clean, _, _ = play(tmp_path / "a", {})
    script = lambda device, n: ScriptedFault(delay_s=float((7 * int(device[1:]) + n) % 11))  # noqa: E731
    mixed, told, _ = play(tmp_path / "b", {}, wrap=lambda c: Faulty(c, script))
    assert clean == mixed
    order = [e.device for e in told if isinstance(e, events.Accepted)]
    assert order[:8] != sorted(order[:8])
