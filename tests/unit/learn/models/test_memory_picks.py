"""Settings that are picked so that a device's training fits into its memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

from edgewise.core.errors import ModelError, RecipeError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import FitRequest
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.learn.models import memory_picks
from edgewise.learn.models.memory_picks import MemoryPick, picked_memory
from edgewise.learn.text.trainer import make
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import Recipe, from_plain


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save_place(tmp_path_factory.mktemp("place"))


def recipe(**engine: object) -> Recipe:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 16},
        "training": {"batch": 8, "lr": 0.5, "optimizer": "sgd"},
        "engine": engine,
    }
    return from_plain(plain)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, bool, str], float]:
    """Forecasts by accumulate, checkpointing and precision, in MB: parts of 90 / accumulate beside 10 MB."""
    asked: dict[tuple[int, bool, str], float] = {}

    def needed(recipe, folder, blocks, accumulate, checkpointing, dtype):
        total = 10 + 90 / accumulate * (0.5 if checkpointing else 1) * (0.5 if dtype is torch.bfloat16 else 1)
        asked[accumulate, checkpointing, str(dtype)] = total
        return (total if recipe.data.sequence_len == 16 else total / 2) * 1e6

    monkeypatch.setattr(memory_picks, "_needed", needed)
    return asked


@pytest.mark.parametrize(
    ("limit", "accumulate", "checkpointing", "bfloat16"),
    [(100, 1, False, False), (60, 2, False, False), (22, 8, False, False), (16, 8, True, False), (13, 8, True, True)],
)
def test_the_first_settings_that_fit_are_picked(table, limit, accumulate, checkpointing, bfloat16) -> None:
    found = picked_memory(limit * 1e6, recipe(), Path(), torch.float32)
    assert found[:3] == (accumulate, checkpointing, torch.bfloat16 if bfloat16 else torch.float32)
    assert found.bytes <= limit * 1e6


def test_where_nothing_fits_the_error_names_what_would(table) -> None:
    smallest = (
        r"needs 13 MB with training.accumulate = 8, training.checkpointing = true, model.precision = \"bfloat16\""
    )
    with pytest.raises(ModelError, match=rf"E-MEMORY: .*{smallest}, and the limit is 7 MB.*sequence_len = 8 \(6 MB\)"):
        picked_memory(7e6, recipe(), Path(), torch.float32)
    with pytest.raises(ModelError, match=r"take a smaller model; or raise the limit"):
        picked_memory(1e6, recipe(), Path(), torch.float32)


def test_the_recipes_own_settings_are_no_change() -> None:
    pick = MemoryPick(1, False, torch.float32, 1.0)
    assert pick.differs(recipe(), torch.float32) == ""


def test_limits_go_by_the_first_pattern() -> None:
    engine = recipe(max_memory_mb=900.0, device_memory_mb={"phone-*": 300.0}).engine
    assert [engine.memory_mb(device) for device in ("phone-1", "hub-1")] == [300.0, 900.0]
    assert recipe(device_memory_mb={"phone-*": 300.0}).engine.memory_mb("hub-1") == 0.0
    with pytest.raises(RecipeError, match=r"E-VALUE.*not above 0"):
        recipe(device_memory_mb={"phone-*": 0.0})


@pytest.mark.slow
def test_a_device_with_a_limit_trains_the_same_update_in_smaller_parts(place: Path, monkeypatch) -> None:
    free = make(recipe(), place, place / "cache")
    pick = MemoryPick(8, True, torch.float32, 1e6)
    monkeypatch.setattr(memory_picks, "picked_memory", lambda *_: pick)
    bound = make(recipe(device_memory_mb={"phone-*": 1.0}), place, place / "cache")
    sizes: list[int] = []
    loss = type(bound.loss).__call__

    def seen(self, model, batch):
        sizes.append(len(batch[0]))
        assert model.is_activation_checkpointing == (len(batch[0]) == 1)
        return loss(self, model, batch)

    for device, parts in (("phone-1", 8), ("hub-1", 1)):
        request = FitRequest(device, 0, free.initial(), LocalRule(steps=2, lr=0.5), root(1), root(1))
        alone = free.fit(request)
        monkeypatch.setattr(type(bound.loss), "__call__", seen)
        sizes.clear()
        update = bound.fit(request)
        monkeypatch.setattr(type(bound.loss), "__call__", loss)
        assert sizes == [8 // parts] * 2 * parts
        np.testing.assert_allclose(update.x, alone.x, atol=3e-5)
    assert not bound.model.is_activation_checkpointing
    (note,) = bound.notes()[-1:]
    assert "1 device with at most 1 MB: training.accumulate = 8, training.checkpointing = true" in note


@pytest.mark.slow
def test_real_forecasts_meet_a_limit(place: Path) -> None:
    own = picked_memory(1e9, recipe(), place / "model", torch.float32)
    less = picked_memory(own.bytes - 1, recipe(), place / "model", torch.float32)
    assert own.accumulate == 1
    assert less.accumulate > 1
    assert less.bytes < own.bytes


@pytest.mark.slow
def test_limits_that_nothing_keeps_are_refused(place: Path) -> None:
    plain = {**recipe(max_memory_mb=900.0).resolved(), "strategy": {"kind": "zeroth_order"}}
    plain["training"] = {"local_steps": 1, "optimizer": "sgd"}
    with pytest.raises(RecipeError, match=r"E-COMBO.*max_memory_mb.*takes no gradient"):
        make_trainer(from_plain(plain), place, place, BUILT_IN)
