"""Recovery of a server killed (SIGKILL) in the middle of a run: seconds until it serves, and until the run commits.

    python benchmarks/recovery.py [--kills 3]

Three devices, scripts with a model of 21 parameters, train all the time. The server is a process that is killed and
started again at once, on the same port. ``imports`` is the time in which the same machine imports the server's modules
in a new process, and stands beside each figure as the reference.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from edgewise.apps.device import policy
from edgewise.apps.device.script import Device
from edgewise.apps.server.start import HttpServer
from edgewise.apps.server.submission import OWN, Submission
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet.members import Grant
from edgewise.learn.models import modules

DEVICES = 3
RECIPE: dict[str, Any] = {
    "name": "recovery",
    "privacy": "none",
    "data": {"source": "plays"},
    "round": {"rounds": 100_000, "minimum": 1.0},
    "training": {"local_steps": 1, "lr": 0.1},
}


def model() -> torch.nn.Module:
    """The same first values everywhere."""
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


def prepare(folder: Path, port: int) -> tuple[list[Device], Path]:
    """Enrol the devices and submit the run."""
    with HttpServer(folder / "server", port=port) as server:
        devices = []
        for i in range(DEVICES):
            home = folder / f"device-{i}"
            devices.append(Device.join(server.url, server.token(Grant(approved=True)), home))
            (home / policy.FILE).write_text('[privacy]\nwords = ["none"]\ncohort = 1\n')
        spec = modules.module_layout(model())
        raw = bytes(vector.to_bytes(modules.read_module_vector(model(), spec)))
        server.service.staging.put(vector.digest(raw), 0, len(raw), raw)
        wanted = Submission(recipe=RECIPE, spec=spec.to_list(), initial=vector.digest(raw), model=OWN)
        run = server.hosting.submit(wanted, "benchmark").run
        return devices, folder / "server" / "runs" / run[:32] / "run.db"


def train(device: Device) -> None:
    """Answer every task with a random change."""
    own = model()
    try:
        for task in device.tasks():
            task.load_into(own)
            with torch.no_grad():
                for p in own.parameters():
                    p += 0.01 * torch.randn_like(p)
            task.submit(own, examples=1, metrics={"loss": 1.0})
    except EdgewiseError as e:
        print(f"a device stopped: {e}", file=sys.stderr)


def started(folder: Path, port: int) -> subprocess.Popen[str]:
    """Start the server, and return when it serves."""
    command = [sys.executable, "-m", "edgewise.apps.cli.main", "serve", str(folder), "--listen", f"127.0.0.1:{port}"]
    process = subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("{"), "the server did not start"
    return process


def rounds(database: Path) -> int:
    """The number of rounds that the run has committed."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30.0)) as c:
        return int(c.execute("SELECT next_round FROM runs").fetchone()[0])


def wait_for(database: Path, round: int, limit_s: float = 120.0) -> None:
    """Wait until the run has committed a round."""
    until = time.monotonic() + limit_s
    while rounds(database) < round:
        assert time.monotonic() < until, "the run does not go on"
        time.sleep(0.02)


def main() -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        devices, database = prepare(folder, port)
        for device in devices:
            Thread(target=train, args=(device,), daemon=True).start()
        process = started(folder / "server", port)
        for _ in range(options.kills):
            wait_for(database, rounds(database) + 2)
            process.kill()
            process.wait()
            killed_s, before = time.monotonic(), rounds(database)
            process = started(folder / "server", port)
            serving_s = time.monotonic() - killed_s
            wait_for(database, before + 1)
            round_s = time.monotonic() - killed_s
            begun_s = time.monotonic()
            subprocess.run([sys.executable, "-c", "import edgewise.apps.server.start"], check=True)
            figures = {"serving_s": serving_s, "round_s": round_s, "imports_s": time.monotonic() - begun_s}
            rounded = {name: round(value, 2) for name, value in figures.items()}
            print(json.dumps({**rounded, "load": round(os.getloadavg()[0], 1)}), flush=True)
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
