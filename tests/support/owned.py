"""Agents of toy devices, each with its owner's policy, in a run that a server plays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from served import joined
from toy import ToyTrainer
from toy_recipe import PLAIN

from edgewise.apps.device import agent, policy
from edgewise.apps.server import submit
from edgewise.apps.server.start import HttpServer
from edgewise.core import vector
from edgewise.core.errors import Interrupted
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.drivers.http.link import Link
from edgewise.drivers.workers.parted import parted
from edgewise.engine.trainer import Registered, registered
from edgewise.plan.own_part import own_part
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.recipe import Recipe


def owned(server: HttpServer, home: Path, text: str) -> Path:
    """An enrolled device with this policy, and a text of its own."""
    joined(server, home).close()
    (home / "own.txt").write_text("text that stays here")
    (home / policy.FILE).write_text(f"[data]\npath = 'own.txt'\n{text}")
    return home


def submitted(server: HttpServer, admin: Link, **overrides: Any) -> str:
    """Begin a run of the toy recipe without torch, on all devices that are enrolled; returns its id."""
    recipe = recipes.parse(PLAIN, overrides={"round.deadline_s": 60.0, "eval.every": 0, **overrides})
    trainer = _kept(recipe, ToyTrainer(recipe)).trainer
    initial = bytes(vector.to_bytes(trainer.initial()))
    for _ in submit._staged(admin, vector.digest(initial), initial, len(initial)):
        pass
    document = {
        "recipe": recipe.resolved(), "spec": trainer.spec.to_list(), "initial": vector.digest(initial), "model": "",
        "facts": {}, "tags": [],
    }  # fmt: skip
    return str(admin.call("POST", "/v1/runs", document=document)["run"])


def toy(recipe: Recipe, folder: Path, device: DeviceId, spec: Spec) -> Registered:
    """Trainer of an agent."""
    return _kept(recipe, ToyTrainer(recipe, [device]))


def _kept(recipe: Recipe, trainer: ToyTrainer) -> Registered:
    """The trainer, whose devices keep a part of the model where the recipe says so."""
    parts, plain = own_part(recipe, trainer.spec), registered(trainer)
    return plain if parts is None else parted(plain, parts, recipe)


@contextmanager
def working(
    *homes: Path, make: Callable[..., Registered] = toy, patience_s: float = 10.0
) -> Iterator[list[threading.Thread]]:
    """The agents of these folders, as threads; they end with the block."""
    stop = threading.Event()

    def work(home: Path) -> None:
        with suppress(Interrupted):  # its owner leaves
            agent.work(home, until=stop.is_set, make=make, wait_s=0.2, patience_s=patience_s)

    threads = [threading.Thread(target=work, args=(home,), daemon=True) for home in homes]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        stop.set()
        for thread in threads:
            thread.join(20.0)


def state(admin: Link, run: str) -> str:
    """State of a run, as the server gives it."""
    return str(admin.call("GET", f"/v1/runs/{run}")["state"])


def ended(admin: Link, run: str, within_s: float = 60.0) -> str:
    """The state of a run once it does not run any more."""
    deadline = time.monotonic() + within_s
    while (now := state(admin, run)) == "running" and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


def seen(found: Callable[[], Any], within_s: float = 20.0) -> Any:
    """Wait until something is true; returns it."""
    deadline = time.monotonic() + within_s
    while not (now := found()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return now
