"""Laws of all trainers: of text, of any torch module, along directions, of a shared part, and the toy."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_model
import torch
from torch import Tensor, nn
from toy import ToyTrainer
from toy_recipe import make_recipe

from arch.source import SRC, dotted, nodes, where
from edgewise.core.errors import TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.parts import ModelParts
from edgewise.core.training import Correction, FitRequest
from edgewise.drivers.storage.split_sessions import SessionFiles
from edgewise.drivers.workers.parted import PartedTrainer
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import Trainer, registered
from edgewise.learn.keywords.light_trainer import LightTrainer
from edgewise.learn.keywords.light_trainer import make as make_light_trainer
from edgewise.learn.keywords.trainer import KeywordTrainer
from edgewise.learn.keywords.trainer import make as make_keyword_trainer
from edgewise.learn.retrieve.trainer import make as make_retriever
from edgewise.learn.shards import TensorShard
from edgewise.learn.split_trainer import SplitTrainer
from edgewise.learn.task import TaskTrainer, TorchTask
from edgewise.learn.text.trainer import make
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.vibration.trainer import VibrationTrainer
from edgewise.learn.vibration.trainer import make as make_vibration_trainer
from edgewise.learn.zeroth_order import ZerothOrderTrainer
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.strategies.base import Directions
from unit.learn.keywords import made_clips
from unit.learn.vibration import made_recordings

RULE = LocalRule(steps=3, lr=0.05)


class Line(nn.Module):
    """Two tensors, so that one of them can be held."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(3))


def _loss(model: nn.Module, batch: tuple[Tensor, ...]) -> tuple[Tensor, float]:
    rows = batch[0]
    return ((model.a - rows[:, :4]) ** 2).sum() + ((model.b - rows[:, 4:]) ** 2).sum(), float(len(rows))  # type: ignore[operator]


def _torch_trainer(_: Path) -> TorchTrainer:
    rows = torch.linspace(-1, 1, 20 * 7).reshape(20, 7)
    shards = {f"d{i}": TensorShard((rows + i,), (rows[:5] - i,)) for i in range(3)}
    return TorchTrainer(Line(), _loss, shards, TrainingSection(lr=0.05, batch=4))


def _task(_: Path) -> TaskTrainer:
    rows = torch.linspace(-1, 1, 20 * 7).reshape(20, 7)
    plain = {"privacy": "none", "training": {"lr": 0.05, "batch": 4}, "data": {"holdout": 0.2}}
    task = TorchTask(Line(), lambda model, batch: _loss(model, batch)[0] / len(batch[0]))
    return TaskTrainer(task, {f"d{i}": (rows + i,) for i in range(3)}, from_plain(plain))


def _directions(place: Path) -> ZerothOrderTrainer:
    return ZerothOrderTrainer(registered(_torch_trainer(place)), Directions(32, 1e-3), root(3))


def _parted(place: Path) -> PartedTrainer:
    inner = registered(_torch_trainer(place))
    recipe = from_plain({"privacy": "none", "personal": {"method": "fedrep", "parts": ["b"], "steps": 2}})
    return PartedTrainer(inner, ModelParts(inner.trainer.spec, ("b",)), recipe)


def _text(place: Path) -> Trainer:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 32},
        "training": {"batch": 2, "lr": 0.01},
    }
    trainer: Trainer = make(from_plain(plain), place, place / "cache")
    return trainer


def _retriever(place: Path) -> Trainer:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "dialogues", "sequence_len": 32},
        "training": {"batch": 8, "lr": 0.01},
        "retriever": {"pairs": "turns", "pool": "states"},
    }
    trainer: Trainer = make_retriever(from_plain(plain), place, place / "cache")
    return trainer


def _cut(place: Path, **split: object) -> Trainer:
    """A trainer of a split model."""
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {"source": "text", "path": "notes", "sequence_len": 32},
        "training": {"batch": 2, "lr": 0.01},
        "split": {"cut": 1, **split},
    }
    run_dir = place / f"run-{len(split)}"
    return make_trainer(from_plain(plain), place, run_dir, BUILT_IN).trainer


def _keywords(place: Path) -> KeywordTrainer:
    clips = made_clips.write(place / "clips.npz")
    recipe = made_clips.recipe(clips, training={"lr": 0.05, "batch": 4})
    return make_keyword_trainer(recipe, place, place / "cache")


def _light(place: Path) -> LightTrainer:
    clips = made_clips.write(place / "clips.npz")
    recipe = made_clips.recipe(clips, training={"lr": 0.05, "batch": 4}, keywords__computes="numpy")
    return make_light_trainer(recipe, place, place / "cache")


def _vibration(place: Path) -> VibrationTrainer:
    path = made_recordings.write(place / "recordings.npz")
    recipe = made_recordings.recipe(path, training={"lr": 0.01, "batch": 6})
    return make_vibration_trainer(recipe, place, place / "cache", SessionFiles(place, False))


# One of each, by its class; add a line for a new one.
TRAINERS: dict[str, Callable[[Path], Trainer]] = {
    "ToyTrainer": lambda _: ToyTrainer(make_recipe()),
    "TorchTrainer": _torch_trainer,
    "TaskTrainer": _task,
    "ZerothOrderTrainer": _directions,
    "PartedTrainer": _parted,
    "TextTrainer": _text,
    "RetrieverTrainer": _retriever,
    "KeywordTrainer": _keywords,
    "LightTrainer": _light,
    "VibrationTrainer": _vibration,
    "SplitTrainer": _cut,
    "CachedTrainer": lambda place: _cut(place, shape="head", held_by="gateway", device_part="frozen"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    for name in ("ann", "bob"):
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text(f"{name} sees the fox jump\n" * 40)
        (folder / "dialogues" / name).mkdir(parents=True)
        lines = [f"{name} asks {n}?\nthe fox {n} jumps\n" for n in range(30)]
        (folder / "dialogues" / name / "1.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module", params=TRAINERS.values(), ids=TRAINERS)
def trainer(request: pytest.FixtureRequest, place: Path) -> Trainer:
    made: Trainer = request.param(place)
    return made


TEXT_PORTS = {
    "describes",
    "counts",
    "noises",
    "sums",
    "measures",
    "computes",
    "continues",
    "reads",
    "reports",
    "remarks",
    "metrics",
    "together",
    "moves",
    "holds_back",
    "fits_blocks",
    "contrasts",
}
PORTS = {
    "ToyTrainer": {"describes", "measures", "fits_blocks"},
    "TorchTrainer": {"counts", "noises", "sums", "measures", "computes", "metrics", "together", "moves", "holds_back"},
    "TaskTrainer": {
        "describes",
        "counts",
        "noises",
        "sums",
        "measures",
        "computes",
        "metrics",
        "together",
        "moves",
        "holds_back",
    },
    "KeywordTrainer": {
        "describes",
        "counts",
        "noises",
        "sums",
        "measures",
        "computes",
        "metrics",
        "together",
        "moves",
        "holds_back",
    },
    "VibrationTrainer": {
        "describes",
        "counts",
        "noises",
        "sums",
        "measures",
        "computes",
        "metrics",
        "together",
        "moves",
        "holds_back",
    },
    "LightTrainer": {"describes", "counts", "metrics"},
    "ZerothOrderTrainer": {"describes", "counts", "measures", "continues"},
    "PartedTrainer": {"describes", "continues"},
    "SplitTrainer": {"describes", "continues"},
    "CachedTrainer": {"describes", "continues"},
    "RetrieverTrainer": TEXT_PORTS,
    "TextTrainer": TEXT_PORTS,
}


@pytest.mark.slow
def test_a_trainer_is_registered_with_all_that_it_can_do(trainer: Trainer) -> None:
    found = registered(trainer)
    assert {field.name for field in fields(found) if getattr(found, field.name) is not None} == {
        "trainer",
        *PORTS[type(trainer).__name__],
    }


def ask(trainer: Trainer, device: int = 0, seed: int = 0, rule: LocalRule = RULE) -> FitRequest:
    key = derive(root(seed), "fit")
    return FitRequest(trainer.devices()[device], 0, trainer.initial(), rule, key, key)


def test_an_update_has_the_layout_of_the_model(trainer: Trainer) -> None:
    params, update = trainer.initial(), trainer.fit(ask(trainer))
    assert (params.dtype, params.shape) == (np.float32, (trainer.spec.dim,))
    assert (update.x.dtype, update.x.shape) == (np.float32, (trainer.spec.dim,))
    assert np.isfinite(update.x).all()
    assert update.x.any()
    assert set(update.head) == {"loss_first", "loss_last"}
    assert update.count > 0


def test_the_same_request_gives_the_same_bits(trainer: Trainer) -> None:
    """Requests in between change nothing, because a trainer remembers nothing."""
    one = trainer.fit(ask(trainer))
    trainer.fit(ask(trainer, device=1, seed=4))
    trainer.evaluate(trainer.devices()[1], one.x)
    two = trainer.fit(ask(trainer))
    assert one.x.tobytes() == two.x.tobytes()
    assert (one.head, one.count) == (two.head, two.count)


def test_devices_differ_and_stand_in_order(trainer: Trainer) -> None:
    assert list(trainer.devices()) == sorted(trainer.devices())
    assert trainer.fit(ask(trainer)).x.tobytes() != trainer.fit(ask(trainer, device=1)).x.tobytes()


def test_what_is_asked_stays_as_it_is(trainer: Trainer) -> None:
    request = ask(trainer)
    before = request.params.copy()
    trainer.fit(request)
    trainer.evaluate(request.device, request.params)
    assert request.params.tobytes() == before.tobytes()
    assert trainer.initial().tobytes() == before.tobytes()


def test_training_helps_and_evaluating_does_not_train(trainer: Trainer) -> None:
    device, x = trainer.devices()[0], trainer.initial()
    before = trainer.evaluate(device, x)
    assert trainer.evaluate(device, x) == before
    assert before.tokens > 0
    update = trainer.fit(ask(trainer, rule=msgspec.structs.replace(RULE, steps=12)))
    assert update.head["loss_last"] < update.head["loss_first"]


def test_gradients_are_corrected_as_the_request_says(trainer: Trainer) -> None:
    """The trainer along directions is left out. It has no gradients, and no strategy corrects any."""
    if isinstance(trainer, ZerothOrderTrainer):
        return
    request = ask(trainer)
    if isinstance(trainer, SplitTrainer):  # A session has the gradients of two parts, and no strategy corrects both.
        with pytest.raises(TrainingError):
            trainer.fit(replace(request, correction=Correction(pull=1.0)))
        return
    against = 10 * np.sign(trainer.fit(request).x) + np.float32(1e-3)
    for correction in (Correction(shift=against.astype(np.float32)), Correction(pull=1.0)):
        moved = trainer.fit(replace(request, correction=correction)).x
        assert moved.tobytes() != trainer.fit(request).x.tobytes()
    assert (trainer.fit(replace(request, correction=Correction(shift=against.astype(np.float32)))).x @ against) < 0


def test_segments_that_do_not_travel_do_not_move(trainer: Trainer) -> None:
    """The trainer along directions is left out, because its vector has no segments of the model."""
    if len(trainer.spec.segments) < 2:
        return
    moved = trainer.spec.segments[-1]
    x = trainer.fit(ask(trainer, rule=msgspec.structs.replace(RULE, segments=(moved.name,)))).x
    assert x[moved.start : moved.stop].any()
    x[moved.start : moved.stop] = 0.0
    assert not x.any()


def test_a_model_that_blew_up_is_refused_and_leaves_no_trace(trainer: Trainer) -> None:
    request = ask(trainer)
    if isinstance(trainer, ToyTrainer):  # it has no losses that could overflow
        return
    with pytest.raises(TrainingError):
        trainer.fit(replace(request, params=np.full(trainer.spec.dim, np.float32(np.nan))))
    assert np.isfinite(trainer.fit(request).x).all()


@pytest.mark.slow
def test_sizes_are_those_that_a_forecast_reads(trainer: Trainer) -> None:
    sizes = trainer.sizes()
    assert {"parameters", "trainable", "memory_bytes"} <= sizes.keys()
    assert sizes["parameters"] >= sizes["trainable"] > 0


OTHERS = {  # Classes with ``fit`` and ``evaluate`` that no law can hold for.
    "Trainer": "the port itself",
    "PartTrainer": "it needs the rest on a server; test_part_trainer.py compares it with SplitTrainer",
    "Registered": "a trainer with its ports",
    "Handover": "a script on a device trains, and evaluates nothing",
    "StatisticsTrainer": "it counts text, and trains nothing",
    "CrossSiteTrainer": "it measures a model, and trains nothing",
    "PoisonedTrainer": "it lies on purpose, for an audit",
}


def test_every_trainer_is_under_these_laws() -> None:
    """A class that fits and evaluates, or inherits from one that does, wherever it lives."""
    classes = [node for _, node in nodes(ast.ClassDef) if isinstance(node, ast.ClassDef)]
    methods = {node.name: {m.name for m in node.body if isinstance(m, ast.FunctionDef)} for node in classes}
    found: set[str] = set()
    for node in classes:
        bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
        inherited = set[str]().union(*(methods.get(base, set()) for base in bases))
        if {"fit", "evaluate"} <= methods[node.name] | inherited or bases & TRAINERS.keys():
            found.add(node.name)
    assert OTHERS.keys() <= found, "a class that is gone needs no reason"
    assert (found - OTHERS.keys()) | {"ToyTrainer"} == set(TRAINERS), "add the new trainer to TRAINERS"


def test_the_abilities_of_a_trainer_are_looked_for_in_one_place() -> None:
    """Whoever needs one asks ``engine.trainer.Registered``."""
    bad = []
    for path, node in nodes(ast.Call):
        assert isinstance(node, ast.Call)
        probes = dotted(node.func) in {"isinstance", "issubclass", "hasattr", "getattr"} and node.args
        if probes and path != SRC / "engine" / "trainer.py" and "trainer" in dotted(node.args[0]).lower():
            bad.append(where(path, node))
    bad += [where(path, node) for path, node in nodes(ast.ClassDef) if _is_runtime_protocol(node)]
    assert not bad, "give engine.trainer an optional port for it:\n" + "\n".join(bad)


def _is_runtime_protocol(node: ast.AST) -> bool:
    """Tell whether a class is a protocol that ``isinstance`` can ask for."""
    assert isinstance(node, ast.ClassDef)
    return any(dotted(one).rpartition(".")[2] == "runtime_checkable" for one in node.decorator_list)
