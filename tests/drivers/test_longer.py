"""Training alone for longer: the same figures as alone for the same steps, others for more; kept through a kill."""

from __future__ import annotations

import pytest
from played import play
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.drivers.storage.run_store import RunStore

SETTINGS = {"compare.centralised": False, "compare.longer_devices": 3}


def measured(told, model):
    return {d: nll for e in told if isinstance(e, events.Evaluated) and e.model == model for d, nll in e.nll.items()}


@pytest.mark.slow
def test_as_many_steps_give_what_training_alone_gives(tmp_path):
    _, told, _ = play(tmp_path, {**SETTINGS, "compare.longer": 1})
    alone, longer = measured(told, "local_only"), measured(told, "longer")
    assert sorted(longer) == ["d00000", "d00002", "d00005"], "spread evenly over the eight"
    assert longer == {d: alone[d] for d in longer}


@pytest.mark.slow
def test_more_steps_give_other_models_and_both_engines_the_same(tmp_path):
    one = measured(play(tmp_path / "1", {**SETTINGS, "compare.longer": 1})[1], "longer")
    two = measured(play(tmp_path / "2", {**SETTINGS, "compare.longer": 2, "simulation.engine": "inproc"})[1], "longer")
    assert one.keys() == two.keys()
    assert all(one[d] != two[d] for d in one)
    pool = {**SETTINGS, "compare.longer": 2, "simulation.engine": "pool", "simulation.workers": 2}
    assert measured(play(tmp_path / "3", pool)[1], "longer") == two


@pytest.mark.slow
def test_a_device_that_cannot_train_has_no_figure_and_the_reason_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "d00002")
    _, told, _ = play(tmp_path, {**SETTINGS, "compare.longer": 2})
    assert sorted(measured(told, "longer")) == ["d00000", "d00005"]
    notes = [e.note for e in told if isinstance(e, events.Progress) and e.phase == "longer"]
    assert "d00002: E-DEVICE-DATA" in notes


@pytest.mark.slow
def test_it_is_not_run_where_it_is_not_asked_for(tmp_path):
    _, told, _ = play(tmp_path, {})
    assert not measured(told, "longer")
    with RunStore(tmp_path) as store:
        assert not store.measures("longer")


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_with_the_devices_that_are_left(tmp_path):
    settings = {**SETTINGS, "compare.longer": 2}
    whole = measured(play(tmp_path / "whole", settings)[1], "longer")
    told = []

    def stop_after_the_first(event):
        told.append(event)
        if isinstance(event, events.Progress) and event.phase == "longer" and event.done == 1:
            raise KeyboardInterrupt

    out = tmp_path / "cut"
    common = {"out": out, "recipe_dir": tmp_path, "extensions": ["toy"], "report": False}
    with pytest.raises(KeyboardInterrupt):
        simulation.run(make_recipe(settings), sinks=[stop_after_the_first], **common)
    with RunStore(out) as store:
        assert len(store.measures("longer")) == 1
    again = []
    simulation.run(make_recipe(settings), resume=True, sinks=[again.append], **common)
    assert [e.done for e in again if isinstance(e, events.Progress) and e.phase == "longer"] == [2, 3]
    assert measured(again, "longer") == whole
