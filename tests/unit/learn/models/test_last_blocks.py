"""Training of the last blocks of a model: what is in the vector, and the blocks that fit a device's memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch

from edgewise.core.blocks import from_last
from edgewise.core.errors import ModelError
from edgewise.core.keys import root
from edgewise.core.training import FitRequest
from edgewise.learn.models import memory_picks
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.load import load
from edgewise.learn.models.memory import forecast
from edgewise.learn.models.memory_picks import picked_memory
from edgewise.learn.text.trainer import make
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import Recipe, from_plain

BOTH = {"last_blocks": 2, "block_shares": {"1": 0.5, "2": 0.5}, "blocks_by": "memory"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save_place(tmp_path_factory.mktemp("place"))


def recipe(trainable: dict[str, object], **engine: object) -> Recipe:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 16},
        "training": {"batch": 8, "lr": 0.05, "optimizer": "sgd", "local_steps": 2},
        "trainable": trainable,
        "engine": engine,
    }
    return from_plain(plain)


@pytest.mark.parametrize(
    "section", [{"kind": "full"}, {"kind": "lora", "rank": 2}, {"kind": "lora", "targets": ["q_proj"], "rank": 2}]
)
def test_only_the_last_blocks_are_in_the_vector(place, section) -> None:
    def names(**more: object) -> list[str]:
        model = load("model", place, torch.float32, "none", None).model
        made = recipe({**section, **more}).trainable
        return [s.name for s in make_trainable(model, made, root(1), torch.float32)[1].spec.segments]

    whole = names()
    blocks = max(from_last(whole)) - (section["kind"] == "full")
    assert blocks >= 2
    wanted = [name for name, number in zip(whole, from_last(whole), strict=True) if number <= 1]
    assert names(last_blocks=1) == wanted
    assert len(wanted) < len(whole)
    with pytest.raises(ModelError, match=rf"E-TARGETS: trainable.last_blocks = 40: the model has {blocks} numbered"):
        names(last_blocks=40)


def test_frozen_blocks_are_never_sent_down(place) -> None:
    sizes = {}
    for section in ({"last_blocks": 1}, {"last_blocks": 2}):
        trainer = make(recipe(section), place, place / "cache")
        plan = compile(recipe(section), trainer.spec, 2, BUILT_IN)
        sizes[section["last_blocks"]] = plan.snapshot_bytes
        numbers = from_last([s.name for s in trainer.spec.segments])
        assert plan.snapshot_bytes == 4 * sum(s.size for s, n in zip(trainer.spec.segments, numbers, strict=True))
        assert max(numbers) == section["last_blocks"]
    assert sizes[1] < 0.6 * sizes[2]


@pytest.mark.slow
def test_fewer_blocks_need_less_memory(place) -> None:
    made = recipe({"kind": "lora", "rank": 2, "last_blocks": 2})
    both, one = (
        forecast(
            place / "model", made.trainable, made.training, 16, torch.float32, eval_tokens=16, blocks=k
        ).activations
        for k in (0, 1)
    )
    assert one < 0.9 * both


def test_a_device_trains_the_blocks_that_fit_its_memory(place, monkeypatch) -> None:
    asked = recipe(BOTH, device_memory_mb={"phone-*": 50.0})

    def needed(recipe, folder, blocks, accumulate, checkpointing, dtype):
        return 40e6 * blocks / accumulate**0.01

    monkeypatch.setattr(memory_picks, "_needed", needed)
    assert [picked_memory(limit, asked, Path(), torch.float32).blocks for limit in (90e6, 50e6)] == [2, 1]
    with pytest.raises(ModelError, match="E-MEMORY"):
        picked_memory(30e6, asked, Path(), torch.float32)
    trainer = make(asked, place, place / "cache")
    plan = compile(asked, trainer.spec, 2, BUILT_IN)
    number = np.repeat(from_last([s.name for s in trainer.spec.segments]), [s.size for s in trainer.spec.segments])
    for device, depth in (("phone-1", 1), ("hub-1", 2)):
        request = FitRequest(device, 0, trainer.initial(), plan.rule(0), root(1), root(1), choices=plan.choices)
        for update in (trainer.fit(request), trainer.fit_many([request])[0]):
            assert plan.work(0, 2, device, update.choice).blocks == depth
            assert not update.x[number > depth].any()
            assert update.x[number == depth].any()
    assert any("the last 1 of 2 blocks" in note for note in trainer.notes())
