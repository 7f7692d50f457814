"""Simulated devices that train together: who they are, what each sends, and when they may not."""

from __future__ import annotations

from collections import Counter

import pytest
import toy
from played import play, story
from toy_recipe import make_recipe

from edgewise.apps.simulate import check, simulation
from edgewise.core.errors import DataError, EdgewiseError, StoreError
from edgewise.core.events import Lost
from edgewise.core.training import DeviceId
from edgewise.plan.catalogue import with_extensions

FEW = {"round.rounds": 2, "compare.local_only": False, "compare.centralised": False}
TOGETHER = {**FEW, "engine.batch_devices": 3}
SECURE = {
    "privacy": "hidden",
    "merge": {"kind": "secure_sum"},
    "stage": [{"kind": "clip", "l2": 5.0}, {"kind": "quantize", "grid": "shared"}, {"kind": "wrap"}],
}


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[list[DeviceId]]:
    """Toy devices that train together, and who did. Each trains as it does alone, so bits must not change."""
    found: list[list[DeviceId]] = []

    def fit_many(self, requests):
        found.append([request.device for request in requests])
        return [_or_error(self, request) for request in requests]

    monkeypatch.setattr(toy.ToyTrainer, "fit_many", fit_many, raising=False)
    monkeypatch.setattr(toy.ToyTrainer, "apart", lambda self: None, raising=False)
    return found


def _or_error(trainer, request):
    try:
        return trainer.fit(request)
    except DataError as e:
        return e


@pytest.mark.parametrize("settings", [{}, pytest.param(SECURE, marks=pytest.mark.slow)], ids=["visible", "secure"])
def test_frames_and_memory_stay_per_device(tmp_path, groups, settings):
    alone = play(tmp_path / "a", {**FEW, **settings})
    assert not groups
    together = play(tmp_path / "b", {**TOGETHER, **settings})
    assert together[0] == alone[0]
    assert story(together[1]) == story(alone[1])
    assert {len(group) for group in groups} == {3, 2}
    assert set(Counter(device for group in groups for device in group).values()) == {2}  # once a round


def test_a_device_that_fails_costs_no_other_its_part(tmp_path, groups, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "d00003")
    _, told, _ = play(tmp_path, TOGETHER)
    failed = [e.device for e in told if isinstance(e, Lost)]
    assert failed == ["d00003"] * 2
    assert any("d00003" in group and len(group) == 3 for group in groups)


def test_an_error_of_the_whole_pass_is_each_devices_error(tmp_path, groups, monkeypatch):
    def fit_many(self, requests):
        if any(request.device == "d00003" for request in requests):
            raise RuntimeError("out of memory")
        return [self.fit(request) for request in requests]

    monkeypatch.setattr(toy.ToyTrainer, "fit_many", fit_many)
    _, told, _ = play(tmp_path, {**TOGETHER, "round.rounds": 1, "round.minimum": 0.1})
    assert len([e for e in told if isinstance(e, Lost)]) == 3


@pytest.mark.slow
def test_resume_keeps_the_number(tmp_path, groups):
    play(tmp_path, TOGETHER)
    with pytest.raises(StoreError, match=r"E-RESUME: the number of devices that train together.*3 then, 1 now"):
        simulation.run(
            make_recipe(FEW), out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], resume=True, report=False
        )


def test_a_trainer_of_one_device_at_a_time_is_refused(tmp_path):
    with pytest.raises(EdgewiseError, match=r"E-COMBO.*engine.batch_devices = 3.*one device at a time"):
        play(tmp_path, TOGETHER)


@pytest.mark.parametrize(("step_s", "proposed"), [(0.1, 8), (1e-9, None), (60.0, None), (0.0, None)])
def test_check_proposes_a_number_where_that_is_faster(tmp_path, groups, monkeypatch, step_s, proposed):
    """One step alone takes ``step_s`` here, and a pass of eight devices next to nothing."""
    monkeypatch.setattr(toy.ToyTrainer, "step_s", lambda self: step_s)
    found = check.examine(make_recipe(FEW), tmp_path, with_extensions(["toy"]))["together"]
    assert (found and found["devices"]) == proposed
