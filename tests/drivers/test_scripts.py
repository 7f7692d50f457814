"""Devices whose training is a script's, over a server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from scripted import POLICY, RECIPE, device, module, step, submission
from served import running
from torch import nn

import edgewise
from edgewise.apps.device import record
from edgewise.apps.device.agent import work
from edgewise.apps.device.handover import Desk, handover
from edgewise.apps.device.script import Device
from edgewise.apps.device.task import FramesThatLeft, Outcome, Task
from edgewise.apps.server.start import HttpServer
from edgewise.core.errors import ModelError, RecipeError, TrainingError
from edgewise.core.training import FitRequest, Update
from edgewise.drivers.storage.personal_models import personal_models
from edgewise.learn.models import modules
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain

PATHS = os.pathsep.join([str(Path(edgewise.__file__).parents[1]), str(Path(__file__).parents[1] / "support")])
PERSONAL = {"personal": {"method": "interpolate", "weight": 0.5, "steps": 4, "lr": 0.1}}
HERE, GONE = {"state": "released", "yours": True}, {"state": "released", "yours": False}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    with running(tmp_path) as made:
        yield made


def test_a_module_that_is_not_the_runs_is_refused_by_name() -> None:
    spec = modules.module_layout(module())
    x = modules.read_module_vector(module(), spec)

    def refused(model: Any) -> str:
        before = [p.clone() for p in model.parameters()] if isinstance(model, nn.Module) else []
        with pytest.raises(ModelError) as e:
            modules.load_module_vector(model, spec, x + 1)
        assert e.value.code == "E-LAYOUT"
        assert all(map(torch.equal, before, model.parameters() if before else []))
        return e.value.what

    assert "lacks 1.bias" in refused(nn.Sequential(nn.Linear(4, 3)))
    wider = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2)).requires_grad_(False)
    assert "0.weight has the shape (3, 5), and in the run (3, 4)" in refused(wider)
    assert "trains 1.weight, which the run does not" in refused(module().requires_grad_(True))
    assert "0.weight is bfloat16" in refused(module().to(torch.bfloat16))
    assert "dict is not a torch module" in refused({})
    good = module().requires_grad_(False)
    modules.load_module_vector(good, spec, x + 1, ("0.bias",))
    assert [name for name, p in good.named_parameters() if p.requires_grad] == ["0.bias"]
    assert modules.read_module_vector(good, spec) == pytest.approx(x + 1)


def task_of(
    overrides: dict[str, Any],
    end: dict[str, Any] | None = None,
    left: FramesThatLeft = FramesThatLeft(),  # noqa: B008
) -> Task:
    """A task of round 0, and what the server and the record say of it."""
    recipe = from_plain({**RECIPE, **overrides})
    spec = modules.module_layout(module())
    plan = compile(recipe, spec, 4, BUILT_IN)
    correction = plan.strategy.client.correction(
        {name: np.ones(spec.dim, np.float32) for name in plan.strategy.client.memory},
        {name: np.zeros(spec.dim, np.float32) for name in plan.strategy.client.given},
        plan.work(0, plan.rule(0).steps, "d"),
    )
    start = modules.read_module_vector(module(), spec)
    request = FitRequest("d", 0, start, plan.rule(0), bytes(32), bytes(32), correction)
    told = end or {**HERE, "code": None, "reason": None}
    return Task(plan, None, request, Desk(), lambda round: told, lambda round: left)


def refused(task: Task, model: nn.Module, **more: Any) -> str:
    with pytest.raises(TrainingError) as e:
        task.submit(model, **{"examples": 8, "metrics": {"loss": 1.0}, **more})
    assert e.value.code == "E-TASK"
    assert task._desk._answers.empty(), "nothing was sent"
    return e.value.what


def test_a_task_that_is_not_used_as_it_is_meant_is_refused_and_sends_nothing() -> None:
    task, model = task_of({}), module()
    assert "was not loaded" in refused(task, model)
    task.load_into(model)
    assert "accuracy does not travel in this run; those that do: loss, loss_first, loss_last" in refused(
        task, model, metrics={"accuracy": 1.0}
    )
    assert "loss_first is missing" in refused(task, model, metrics={"loss_last": 1.0})
    assert "examples = 0" in refused(task, model, examples=0)
    outcome = task.submit(model, examples=8, metrics={"loss": 2.0, "loss_first": 3.0})
    assert outcome.metrics == ("loss_first", "loss_last")
    update = task._desk._answers.get()
    assert isinstance(update, Update)
    assert (dict(update.head), update.count) == ({"loss_first": 3.0, "loss_last": 2.0}, 8.0)
    assert not update.x.any(), "nothing was trained"
    with pytest.raises(TrainingError, match="submitted already"):
        task.submit(model, examples=8)


def test_a_loss_stays_on_the_device_where_the_run_asks_for_none() -> None:
    task, model = task_of({"metrics": "none"}), module()
    task.load_into(model)
    assert "accuracy does not travel in this run; those that do: none" in refused(task, model, metrics={"accuracy": 1})
    assert task.submit(model, examples=8, metrics={"loss": 2.0}).metrics == ()


def test_a_strategy_that_corrects_gradients_hands_out_its_hook() -> None:
    task, model = task_of({"strategy": {"kind": "fedprox", "mu": 0.5}}), module()
    task.load_into(model)
    assert "corrects gradients: call task.correct(model)" in refused(task, model)
    step(model)
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    task.correct(model)
    moved = modules.read_module_vector(model, task.spec) - task.params
    named = [p.grad for p in model.parameters() if p.grad is not None]
    pulls = torch.cat([(g - b).flatten() for g, b in zip(named, before, strict=True)]).numpy()
    assert pulls == pytest.approx(0.5 * moved, abs=1e-6)
    assert task.submit(model, examples=8, metrics={"loss": 1.0}).released


def test_a_strategy_with_a_term_in_the_loss_is_refused_before_a_script_trains() -> None:
    task, model = task_of({"strategy": {"kind": "moon"}}), module()
    before = modules.read_module_vector(model, task.spec)
    with pytest.raises(TrainingError, match=r"moon.* contrasts representations .* a training script of your own") as e:
        task.load_into(model)
    assert e.value.code == "E-TASK"
    assert modules.read_module_vector(model, task.spec).tobytes() == before.tobytes(), "nothing was written"
    assert "was not loaded" in refused(task, model)


def test_equations_for_a_number_of_steps_ask_for_that_many() -> None:
    scaffold = {"strategy": {"kind": "scaffold"}, "training": {"local_steps": 2, "optimizer": "sgd", "momentum": 0.0}}
    task, model = task_of(scaffold), module()
    task.load_into(model)
    step(model)
    task.correct(model)
    assert "are for 2 steps; here were 1: take as many, and say so by steps=2" in refused(task, model)
    task.correct(model)
    assert task.submit(model, examples=8, metrics={"loss": 1.0}).released


def test_a_part_that_rests_may_not_move() -> None:
    task, model = task_of({"stage": [{"kind": "segments", "cycle": 2}, {"kind": "weigh"}]}), module()
    task.load_into(model)
    rests = {s.name for s in task.spec.segments} - set(task.trains)
    assert rests
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(task.trains)
    with torch.no_grad():
        for name in rests:
            model.get_parameter(name).add_(1.0)
    assert "moved, and rests in this round" in refused(task, model)


@pytest.mark.parametrize(
    ("end", "left", "said"),
    [
        (
            {**HERE, "code": None, "reason": None},
            FramesThatLeft(9, 0.5),
            "released, 9 bytes, epsilon 0.5",
        ),
        ({**GONE, "code": "late", "reason": None}, FramesThatLeft(9), "dropped (late), 9 bytes, no"),
        ({**GONE, "code": None, "reason": None}, FramesThatLeft(9), "dropped (the round closed without"),
        (
            {"state": "abandoned", "yours": False, "code": None, "reason": None},
            FramesThatLeft(9),
            "dropped (the round was ab",
        ),
        (
            {"state": "halted", "yours": False, "code": None, "reason": "the run is failed"},
            FramesThatLeft(),
            "dropped (the run is",
        ),
        ({"state": "open"}, FramesThatLeft(4, None, "E-BUDGET: spent"), "dropped (E-BUDGET: spent), 4 bytes"),
    ],
)
def test_an_outcome_says_what_became_of_an_update(end: dict[str, Any], left: FramesThatLeft, said: str) -> None:
    task, model = task_of({}, end, left), module()
    task.load_into(model)
    assert said in str(task.submit(model, examples=8, metrics={"loss": 1.0}))


@pytest.mark.slow
def test_a_task_shows_what_the_server_asks() -> None:
    noisy = {"privacy": "local_dp", "dp": {"noise_multiplier": 3.0, "delta": 1e-3, "clip_l2": 1.0}}
    shown = str(task_of(noisy))
    for part in (
        "round 1 of 2",
        "2 steps at a rate of 0.1",
        "deadline",
        "clip",
        "against the server",
        "noise multiplier",
    ):
        assert part in shown


def test_passes_over_examples_need_their_number() -> None:
    spec = modules.module_layout(module())
    with pytest.raises(RecipeError, match=r"device\.tasks\(examples=n\)"):
        handover(spec, "d", Desk(), 0, 2.0)
    counted, free = handover(spec, "d", Desk(), 12, 2.0), handover(spec, "d", Desk(), 0, 0.0)
    assert counted.counts is not None
    assert counted.counts.records("d") == 12
    assert free.counts is None


def play(made: Device, outcomes: list[Outcome], most: int) -> None:
    model = module()
    for task in made.tasks():
        task.load_into(model)
        losses = [step(model, task.lr) for _ in range(task.steps)]
        outcomes.append(task.submit(model, examples=8, metrics={"loss": losses[-1]}))
        if len(outcomes) == most:
            break


@contextmanager
def killed_when_loaded(home: Path) -> Iterator[None]:
    """A process that is killed between loading and sending."""
    code = "from scripted import *; t = next(Device.open(sys.argv[1]).tasks()); t.load_into(module()); print(t.round)"
    command = [sys.executable, "-uc", f"import sys, time; {code}; time.sleep(600)", str(home)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": PATHS}, stdout=subprocess.PIPE) as process:
        yield
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        process.kill()


@pytest.mark.slow
def test_three_scripts_train_a_module_of_their_own(server: HttpServer, tmp_path: Path) -> None:
    """Behind masks. One broke off between loading and sending, and one was killed there: both get the task again."""
    devices = [device(server, tmp_path / f"device-{i}") for i in range(3)]
    outcomes: list[list[Outcome]] = [[] for _ in devices]
    run = server.hosting.submit(submission({**RECIPE, **PERSONAL, "privacy": "hidden"}, server), "test")
    threads = [Thread(target=play, args=(d, o, 2)) for d, o in zip(devices, outcomes, strict=True)]
    threads[2].start()
    with killed_when_loaded(devices[1].home):  # a round begins when all are here
        for task in devices[0].tasks():
            task.load_into(module())
            break
    threads[0].start()
    threads[1].start()
    for thread in threads:
        thread.join()
    server.hosting.wait(run.run)
    further = devices[0].personal(run.run[:12])
    model = module()
    with pytest.raises(TrainingError, match="not loaded"):
        further.keep(model)
    further.load_into(model)
    assert np.array_equal(modules.read_module_vector(model, further.spec), further.params)
    for _ in range(further.steps):
        step(model, further.lr)
    sent = len(record.device_record_lines(devices[0].home))
    own = further.keep(model)
    half = (modules.read_module_vector(model, further.spec) + further.params) / 2
    assert np.allclose(own, half, atol=1e-6)
    assert not np.array_equal(own, further.params)
    (kept,) = personal_models(devices[0].home / "runs" / run.run[:32])
    assert np.array_equal(kept.params, own)
    assert len(record.device_record_lines(devices[0].home)) == sent, "nothing of it is sent"
    for made in devices:
        made.close()
    for told in outcomes:
        assert [(o.round, o.released, o.epsilon) for o in told] == [(0, True, None), (1, True, None)]
        assert all(o.bytes > 50 for o in told)


STEPS = {
    "privacy": "local_dp",
    "dp": {"unit": "example", "noise_multiplier": 3.0, "delta": 1e-5, "clip_l2": 1.0, "sample_rate": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "overrides", "code", "said"),
    [
        ('[privacy]\nwords = ["hidden"]\n', {}, "E-FLOOR", "privacy is one of hidden"),
        (f'{POLICY}[model]\nallow = ["module:{"0" * 64}"]\n', {}, "E-FLOOR", "the model is one of module:000"),
        (POLICY, STEPS, "E-COMBO", "needs a trainer that noises its steps"),
    ],
)
def test_a_device_refuses_what_its_owner_forbids_or_its_loop_cannot_do(
    server: HttpServer, tmp_path: Path, asked: str, overrides: dict[str, Any], code: str, said: str
) -> None:
    made = device(server, tmp_path / "device", asked)
    tasks: list[Task] = []
    thread = Thread(target=lambda: tasks.extend(made.tasks()), daemon=True)
    server.hosting.submit(submission({**RECIPE, "round": {"rounds": 1, "deadline_s": 20}, **overrides}, server), "test")
    thread.start()
    deadline = time.monotonic() + 60
    while not made.refusals and time.monotonic() < deadline:
        time.sleep(0.05)
    (error,) = made.refusals.values()
    assert (error.code, said in error.what) == (code, True), error
    assert not tasks


@pytest.mark.slow
def test_an_agent_refuses_a_module_of_which_it_has_no_code(server: HttpServer, tmp_path: Path) -> None:
    home = tmp_path / "device"
    (tmp_path / "text.txt").write_text("some text of the owner")
    device(server, home, f'{POLICY}[data]\npath = "../text.txt"\n').close()
    server.hosting.submit(submission({**RECIPE, "round": {"rounds": 1, "deadline_s": 20}}, server), "test")
    deadline = time.monotonic() + 60
    work(home, lambda: bool(record.device_record_lines(home)) or time.monotonic() > deadline, wait_s=1.0)
    assert "Only a script with its code can" in record.device_record_lines(home)[0].reason


@pytest.mark.slow
def test_a_script_ends_where_its_server_is_gone(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        made = device(server, tmp_path / "device")
        server.hosting.submit(submission(RECIPE, server), "test")
        tasks = made.tasks()
        task = next(tasks)
    task.refuse("enough")  # which the device's loop now tries to tell
    ended = Thread(target=tasks.close)
    ended.start()
    ended.join(timeout=20.0)
    assert not ended.is_alive()
    made.close()
