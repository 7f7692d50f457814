"""A tiny torch module, a server that plays a run of it, and scripts that train it: for tests of ``edgewise.Device``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import nn

from edgewise.apps.device import policy
from edgewise.apps.device.script import Device
from edgewise.apps.server.start import HttpServer
from edgewise.apps.server.submission import OWN, Submission
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet.members import Grant
from edgewise.learn.models import modules

RECIPE: dict[str, Any] = {
    "name": "scripted",
    "privacy": "none",
    "data": {"source": "plays"},
    "round": {"rounds": 2, "minimum": 1.0},
    "training": {"local_steps": 2, "lr": 0.1},
}
POLICY = '[privacy]\nwords = ["none", "hidden", "local_dp"]\ncohort = 1\n'
QUICK_S = 1.0


def module() -> nn.Module:
    """Two parameters that train, and one that does not."""
    torch.manual_seed(3)
    made = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    made[1].weight.requires_grad_(False)
    return made


def submission(recipe: dict[str, Any], server: HttpServer) -> Submission:
    """A run of ``module``, staged."""
    spec = modules.module_layout(module())
    raw = bytes(vector.to_bytes(modules.read_module_vector(module(), spec)))
    if not server.service.staging.received(vector.digest(raw)):
        server.service.staging.put(vector.digest(raw), 0, len(raw), raw)
    return Submission(recipe=recipe, spec=spec.to_list(), initial=vector.digest(raw), model=OWN)


def device(server: Any, home: Path, asked: str = POLICY) -> Device:
    """A new device with this policy."""
    made = Device.join(server.url, token(server), home)
    made._poll_s = QUICK_S
    (home / policy.FILE).write_text(asked)
    return made


def token(server: Any) -> str:
    """For one device, of a server as commands start it or as scripts do."""
    return str(server.token(Grant(approved=True)) if isinstance(server, HttpServer) else server.token())


def step(model: nn.Module, lr: float = 0.1) -> float:
    """A step of SGD on random examples; returns the loss. By hand: an optimizer of torch takes seconds to import."""
    loss = model(torch.randn(8, 4)).square().mean()
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= lr * p.grad
    return float(loss.detach())


@contextmanager
def training(devices: list[Device]) -> Iterator[None]:
    """The loops of these devices, until the run is over or their server is gone."""

    def loop(one: Device) -> None:
        model = module()
        try:
            for task in one.tasks():
                task.load_into(model)
                task.submit(model, examples=8, metrics={"loss": step(model)})
        except EdgewiseError:
            pass

    threads = [Thread(target=loop, args=(one,), daemon=True) for one in devices]
    for thread in threads:
        thread.start()
    yield
