"""Runs with a split model that a server plays with enrolled devices, by the commands that people type, over TLS."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from agents import EDGEWISE, devices
from safetensors import safe_open

from edgewise.apps.simulate import simulation
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain

RECIPE = """
name = "split"
seed = 7
privacy = "none"
[data]
source = "text"
path = "nowhere on this machine"
sequence_len = 32
[round]
rounds = {rounds}
sampling = "all"
minimum = 1.0
deadline_s = 300
[training]
local_steps = {steps}
batch = 2
accumulate = 2
[model]
base = "tiny"
[split]
cut = 1
shape = "U"
server_parts = "frozen"
"""
POLICY = """
[data]
source = "text"
path = "own.txt"
[privacy]
words = ["none"]
cohort = 2
split = true
"""


def edgewise(*arguments: object, home: Path, **more: Any) -> dict[str, Any]:
    environment = {**os.environ, "EDGEWISE_HOME": str(home), **more}
    command = [*EDGEWISE, *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout, done.stderr)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told.get("result", told)


@contextmanager
def serving(folder: Path, *more: str, port: int = 0) -> Iterator[dict[str, Any]]:
    """A server as a process, with a listener for sessions; killed at the end."""
    command = [*EDGEWISE, "serve", str(folder), "--listen", f"127.0.0.1:{port}", *more, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield {**json.loads(server.stdout.readline()), "pid": server.pid}
        finally:
            server.send_signal(signal.SIGKILL)


def enrolled(url: str, admin: Path, folder: Path, n: int) -> list[Path]:
    token = edgewise("token", "create", "--uses", n, "--approved", home=admin)["text"]
    homes = []
    for i in range(n):
        home = folder / f"device-{i}"
        edgewise("join", url, home=home, EDGEWISE_TOKEN=token)
        (home / "policy.toml").write_text(POLICY)
        (home / "own.txt").write_text(f"the text of device {i}, which stays where it is. " * 40)
        homes.append(home)
    return homes


def ended(run: str, admin: Path, within_s: float = 300.0) -> dict[str, Any]:
    deadline = time.monotonic() + within_s
    while (found := edgewise("run", "show", run[:12], home=admin))["state"] == "running":
        assert time.monotonic() < deadline, found
        time.sleep(1)
    return found


def attempt(home: Path) -> tuple[int, int]:
    """Round and number of the device's last connection. (-1, 0) before the first."""
    for path in home.glob("runs/*/split-attempt.json"):
        found = json.loads(path.read_bytes())
        return found["round"], found["attempt"]
    return -1, 0


def waits_for(what: Callable[[], Any], within_s: float = 240.0) -> Any:
    until_s = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < until_s
        time.sleep(0.005)
    return found


def children(pid: int) -> list[int]:
    """Processes that a process has started, and that compute for split models."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, line = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        if int(stat.rpartition(")")[2].split()[1]) == pid and b"split_child" in line:
            found.append(int(path.name))
    return found


def weights_of(home: Path) -> set[str]:
    """Names of the tensors on a device's disk."""
    found = set[str]()
    for path in home.glob("models/*/*.safetensors"):
        with safe_open(path, "pt") as f:
            found |= set(f.keys())
    return found


def block(folder: Path, number: int) -> set[str]:
    """Names of the tensors of a block of the whole model."""
    with safe_open(folder / "model.safetensors", "pt") as f:
        return {name for name in f.keys() if f".{number}." in name}  # noqa: SIM118


def simulated(folder: Path, texts: Path, names: list[str]) -> dict[int, str]:
    """Digests of the models of a simulation whose devices have these names."""
    for name in names:
        (folder / "texts" / name).mkdir(parents=True)
        (folder / "texts" / name / "own.txt").write_bytes((texts / name / "own.txt").read_bytes())
    plain = tomllib.loads((folder / "recipe.toml").read_text())
    plain["data"]["path"], plain["eval"], plain["compare"] = "texts", {"every": 99}, {}
    plain["compare"] = {"local_only": False, "centralised": False}
    simulation.run(from_plain(plain), out=folder / "simulated", recipe_dir=folder, report=False)
    with RunStore(folder / "simulated") as store:
        return store.models()


@pytest.mark.slow
@pytest.mark.long(sample=1)
def test_rounds_give_the_simulators_models_though_a_device_and_the_process_with_the_rest_are_killed(
    tmp_path: Path,
) -> None:
    """Nothing happens in round 0. A device is killed in its session of round 1, and the server's process in round 2."""
    tiny_model.save(tmp_path / "tiny")
    (tmp_path / "recipe.toml").write_text(RECIPE.format(rounds=3, steps=60))
    admin, folder = tmp_path / "admin", tmp_path / "server"
    with serving(folder, "--split-listen", "127.0.0.1:0") as told:
        edgewise("join", told["url"], home=admin, EDGEWISE_TOKEN=told["token"])
        homes = enrolled(told["url"], admin, tmp_path, 2)
        begun = edgewise("run", "submit", tmp_path / "recipe.toml", home=admin)
        with devices(homes) as agents:
            waits_for(lambda: attempt(homes[0]) == (1, 1))
            time.sleep(0.3)
            agents[0].send_signal(signal.SIGKILL)
            agents[0].wait()
            assert attempt(homes[0]) == (1, 1), "it was killed in its session"
            agents[0] = subprocess.Popen([*EDGEWISE, "device", "run", "--home", str(homes[0])])
            waits_for(lambda: attempt(homes[0]) == (1, 2))
            waits_for(lambda: attempt(homes[0]) == (2, 1))
            time.sleep(0.3)
            (child,) = children(told["pid"])
            os.kill(child, signal.SIGKILL)
            waits_for(lambda: attempt(homes[0])[1] > 1)
            found = ended(begun["run"], admin)
            assert children(told["pid"]) != [child]
        replayed = edgewise("run", "verify", begun["run"][:12], home=admin)
    assert (found["state"], found["why"]) == ("finished", None)
    assert replayed["released"] == 3
    (out,) = (folder / "runs").iterdir()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rounds"]["met"], summary["participation"]["accepted"]) == (3, 6)
    texts = tmp_path / "of-devices"
    names = []
    for home in homes:
        names.append(json.loads((home / "server.json").read_bytes())["name"])
        (texts / names[-1]).mkdir(parents=True)
        (texts / names[-1] / "own.txt").write_bytes((home / "own.txt").read_bytes())
    with RunStore(out) as store:
        assert store.models() == simulated(tmp_path, texts, names)
    status = edgewise("device", "status", home=homes[0])
    assert status["left"]["all"]["kinds"]["activations and gradients of a split model"] >= 4
    assert weights_of(homes[0]) == {"model.embed_tokens.weight", "model.norm.weight", *block(tmp_path / "tiny", 0)}
    text = b"which stays where it is"
    assert not any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())
