"""``training.local_epochs``: every device's steps follow from its own records, in the federation and beside it."""

from __future__ import annotations

import io
import math

import pytest
import toy
from rich.console import Console
from toy_recipe import make_recipe

from edgewise.apps.simulate import check, check_screen, simulation
from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.training import POOLED
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.recipe.privacy import DP_WORDS
from edgewise.plan.recipe.recipe import from_plain

BATCH = 8
EPOCHS = {"training": {"local_epochs": 2.0, "batch": BATCH, "max_local_steps": 6}}
SETTINGS = {"round.rounds": 2, "data.devices": 5, "eval.every": 0}


def held(device: str) -> int:
    """Records of a toy device: d00001 has 10, d00002 20 ..."""
    return 100 if device == POOLED else 10 * int(device[1:])


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(toy.ToyTrainer, "records", lambda self, device: held(device), raising=False)


@pytest.fixture
def asked(monkeypatch):
    requests, fit = [], toy.ToyTrainer.fit

    def noted(self, request):
        requests.append(request)
        return fit(self, request)

    monkeypatch.setattr(toy.ToyTrainer, "fit", noted)
    return requests


@pytest.mark.parametrize(
    ("epochs", "records", "most", "steps"),
    [
        (1.0, 80, 100, 10),
        (1.0, 81, 100, 11),
        (2.0, 3, 100, 2),  # fewer records than a batch: one step is a pass
        (0.5, 80, 100, 5),
        (0.1, 30, 100, 1),
        (0.3, 80, 100, 3),
        (5.0, 800, 100, 100),
        (2.0, 0, 100, 1),
    ],
)
def test_passes_become_steps(epochs, records, most, steps):
    rule = LocalRule(steps=most, lr=0.1, segments=("w",), epochs=epochs)
    assert rule.counted(records, BATCH) == LocalRule(steps=steps, lr=0.1, segments=("w",))


def test_steps_stay_as_they_are():
    rule = LocalRule(steps=7, lr=0.1)
    assert rule.counted(0, BATCH) is rule


def test_every_device_takes_the_steps_of_its_own_records(tmp_path, counting, asked):
    recipe = make_recipe({**SETTINGS, **EPOCHS})
    simulation.run(recipe, out=tmp_path / "run", recipe_dir=tmp_path, extensions=["toy"], report=False)
    expected = {f"d{i:05d}": min(6, max(1, math.ceil(2 * 10 * i / min(BATCH, max(1, 10 * i))))) for i in range(5)}
    assert sorted(expected.values()) == [1, 3, 5, 6, 6]
    single = [r for r in asked if r.device != POOLED]
    assert len(single) == 2 * 2 * 5, "two rounds of five devices together, and the same alone"
    assert all(r.rule.steps == expected[r.device] and not r.rule.epochs for r in single)
    pooled = [r for r in asked if r.device == POOLED]
    assert [r.rule.steps for r in pooled] == [25, 25], "2 passes over 100 records in batches of 8"


@pytest.mark.slow
def test_virtual_time_counts_the_devices_own_steps(tmp_path, counting):
    """With a deadline between the times of few and of many steps, those with much text come too late."""
    world = {"simulation": {"step_s": 1.0, "speed_spread": 0.0, "link_mbit": 20.0, "link_spread": 0.0}}
    settings = {**SETTINGS, "round.deadline_s": 4.5, "round.minimum": 0.2, **EPOCHS, **world}
    simulation.run(make_recipe(settings), out=tmp_path, recipe_dir=tmp_path, extensions=["toy"], report=False)
    from edgewise.drivers.storage.run_store import RunStore

    with RunStore(tmp_path) as store:
        came = {e.device for e in store.events("accepted")}
    assert came == {"d00000", "d00001"}


def test_check_says_how_many_steps(tmp_path, counting):
    found = check.examine(make_recipe({**SETTINGS, **EPOCHS}), tmp_path, with_extensions(["toy"]), fast=True)
    assert found["local_steps"] == {"fewest": 1, "mean": 4.2, "most": 6, "devices": 5, "cut": 2}
    screen = Console(width=80, file=io.StringIO(), record=True)
    check_screen.show_check(screen, found, "toy.toml")
    said = " ".join(screen.export_text().split())
    assert "1 to 6 steps, 4.20 on average, of 5 devices counted; 2 reach training.max_local_steps" in said
    assert any("how much text it holds" in claim for claim in found["claims"])


def test_a_trainer_that_counts_nothing_is_refused(tmp_path):
    with pytest.raises(EdgewiseError, match=r"E-COMBO.*how many records"):
        check.examine(make_recipe({**SETTINGS, **EPOCHS}), tmp_path, with_extensions(["toy"]), fast=True)


def test_exactly_one_of_steps_and_epochs():
    read = from_plain({"privacy": "none", "training": {"local_epochs": 1.5}}).training
    assert (read.local_steps, read.local_epochs) == (0, 1.5)
    again = from_plain({"privacy": "none", "training": read.model_dump()}).training
    assert again == read, "a resolved recipe reads as itself"
    for training in (
        {"local_epochs": 1.0, "local_steps": 4},
        {"local_steps": 0},
        {"local_epochs": 0.0, "local_steps": 0},
        {"max_local_steps": 5},
    ):
        with pytest.raises(RecipeError, match="E-COMBO"):
            from_plain({"privacy": "none", "training": training})


@pytest.mark.parametrize("word", DP_WORDS)
def test_no_epsilon_counts_how_long_a_device_trains(word):
    dp = {"epsilon": 8.0, "delta": 1e-3, "clip_l2": 1.0}
    with pytest.raises(RecipeError, match=r"E-COMBO.*local_epochs"):
        from_plain({"privacy": word, "dp": dp, "training": {"local_epochs": 1.0}})
