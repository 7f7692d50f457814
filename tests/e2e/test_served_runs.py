"""Runs that a server plays with enrolled devices, by the commands that people type."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import EDGEWISE, devices

RECIPE = """
name = "served"
seed = 7
privacy = "hidden"
[data]
source = "text"
path = "nowhere on this machine"
sequence_len = 32
[round]
rounds = 2
minimum = 1.0
deadline_s = 300
[training]
local_steps = 1
batch = 2
[model]
base = "tiny"
"""
POLICY = """
[data]
source = "text"
path = "own.txt"
[privacy]
words = ["hidden", "none"]
cohort = 3
"""


def edgewise(*arguments: object, home: Path, **more: Any) -> dict[str, Any]:
    environment = {**os.environ, "EDGEWISE_HOME": str(home), **more}
    command = [*EDGEWISE, *map(str, arguments), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, (done.stdout, done.stderr)
    return told.get("result", told)


@contextmanager
def serving(folder: Path, port: int = 0) -> Iterator[dict[str, Any]]:
    """A server as a process; killed at the end."""
    command = [*EDGEWISE, "serve", str(folder), "--listen", f"127.0.0.1:{port}", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())
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


def tiny_model(folder: Path) -> None:
    from tiny_model import save

    save(folder)


TRAINED = {
    "all parameters": "",
    "reffa": '[trainable]\nkind = "lora"\nrule = "reffa"\nfolds = 2\nrank = 2\n',
    "fedex": '[trainable]\nkind = "lora"\nrule = "fedex"\nrank = 2\n',
    "distilled": '[distill]\nevery = 1\nteacher = "teacher"\npublic = "public.txt"\nsteps = 3\nadapt = 2\nbatch = 2\n'
    "diversity = 0.0\nheld_tokens = 128\n",
    "asynchronous": "[buffer]\nconcurrency = 2\nmax_staleness = 2\n",
    "flora": '[trainable]\nkind = "lora"\nrule = "flora"\nrank = 2\nranks = {"x*" = 1}\n',
}


@pytest.mark.slow
@pytest.mark.long(sample=1)
@pytest.mark.parametrize("what", TRAINED)
def test_a_recipe_runs_on_three_devices_and_goes_on_after_the_server_was_killed(what: str, tmp_path: Path) -> None:
    tiny_model(tmp_path / "tiny")
    tiny_model(tmp_path / "server" / "distill" / "teacher")  # The operator's, read by the recipe that distils alone.
    (tmp_path / "server" / "distill" / "public.txt").write_text("the text that all may read. " * 200)
    visible = what in ("fedex", "flora", "asynchronous")
    text = RECIPE.replace('"hidden"', '"none"') if visible else RECIPE
    if what == "asynchronous":  # Two devices work at a time, and a round takes the first contribution.
        text = text.replace("rounds = 2\n", 'rounds = 6\nsampling = "buffered"\ncohort = 1\n')
    rounds = 6 if what == "asynchronous" else 2
    (tmp_path / "recipe.toml").write_text(text + TRAINED[what])
    admin, folder = tmp_path / "admin", tmp_path / "server"
    with serving(folder) as told:
        edgewise("join", told["url"], home=admin, EDGEWISE_TOKEN=told["token"])
        homes = enrolled(told["url"], admin, tmp_path, 3)
        if what == "asynchronous":  # The owners of its devices are content with sums of one.
            for home in homes:
                (home / "policy.toml").write_text(POLICY.replace("cohort = 3", "cohort = 1"))
        begun = edgewise("run", "submit", tmp_path / "recipe.toml", home=admin)
    port = int(told["url"].rpartition(":")[2])
    with devices(homes), serving(folder, port):
        deadline = time.monotonic() + 500
        while (found := edgewise("run", "show", begun["run"][:12], home=admin))["state"] == "running":
            assert time.monotonic() < deadline
            time.sleep(1)
        replayed = edgewise("run", "verify", begun["run"][:12], home=admin)
        promoted = edgewise("models", "promote", begun["run"][:12], home=admin)
        fetched = edgewise("models", "fetch", tmp_path / "model", home=homes[0])
    assert (found["state"], found["why"]) == ("finished", None)
    assert (replayed["released"], replayed["replayed"]) == (rounds, rounds)
    assert replayed["model"] == promoted["model"] == fetched["model"]
    assert (tmp_path / "model" / "base" / "config.json").is_file()
    (out,) = (folder / "runs").iterdir()
    assert edgewise("run", "verify", out, home=admin)["chain"] == replayed["chain"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"]["met"] == rounds
    assert len(summary["distillations"]) == 2 * (what == "distilled")
    assert summary["participation"]["accepted"] == 6
    assert sum(summary["participation"]["staleness"].values()) == 6 * (what == "asynchronous")
    assert (out / "report.html").is_file()
    status = edgewise("device", "status", home=homes[0])
    updates = status["left"]["all"]["kinds"].get("update, readable by the server" if visible else "masked update", 0)
    assert updates <= 6 if what == "asynchronous" else updates == 2
    assert "own.txt" not in (folder / "runs").as_posix()
    text = b"which stays where it is"
    assert not any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())
