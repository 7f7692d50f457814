"""A server that is killed by SIGKILL at any of its durable operations, in the middle of a run over HTTPS.

Another process takes its place. The models are those of an undisturbed run: no contribution was lost or counted twice.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from enrolled_toys import Toy, working
from kit import ACTIONS, _Control, available
from network_recipes import MASKS, SHARES
from played import play
from served import joined, running

from edgewise.drivers.http import link as connection

KIT = Path(__file__).parents[1] / "support"
SHIM = Path(__file__).parents[1] / "faults" / "shim.c"
RUNS: dict[str, tuple[int, Mapping[str, Any]]] = {
    "plain": (3, {"round.rounds": 2, "round.deadline_s": 60.0}),
    "masks": (8, MASKS),
    "shares": (8, SHARES),
}
PLACES = 24  # of a run where its server is killed, evenly spread over its operations


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if why := available():
        pytest.skip(why)
    made = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", made, SHIM, "-ldl"], check=True)
    return made


class Served:
    """A run whose devices are threads of this process, and whose server is another process."""

    def __init__(self, folder: Path, name: str, shim: Path) -> None:
        self.n, self.overrides = RUNS[name]
        self.place, self._folder, self._shim, self.control = folder / "place", folder, shim, folder / "control"
        with running(self.place) as first:  # enrols the devices, and ends
            self.links = [joined(first, folder / f"home-{i}") for i in range(self.n)]
            self._port = first.port
        for one in self.links:
            one.patience_s = 120.0  # a process takes seconds to start on a busy machine
        self.names = [one.name for one in self.links]

    def serve(self, action: str = "nothing", at: int = 0) -> dict[str, str] | None:
        """Serve the run until it ends; its models, or None where the server was killed."""
        self.control.write_bytes(bytes(ctypes.sizeof(_Control)))
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(KIT)]), "TOY_NAMES": ",".join(self.names),
            "LD_PRELOAD": str(self._shim), "EDGEWISE_FAULT_ROOT": str(self.place), "EDGEWISE_FAULT_AT": str(at),
            "EDGEWISE_FAULT_CONTROL": str(self.control), "EDGEWISE_FAULT_ACTION": str(ACTIONS[action]),
            "EDGEWISE_FAULT_ERROR": "28", "EDGEWISE_FAULT_FOREVER": "0",
        }  # fmt: skip
        command = [sys.executable, str(KIT / "enrolled_toys.py"), "server", str(self.place)]
        arguments = [json.dumps(self.overrides), str(self._port)]
        done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=240)
        told = [json.loads(line) for line in done.stdout.splitlines()]
        models = next((one["models"] for one in told if "models" in one), None)
        assert models is not None or done.returncode == -9, done.stderr[-2000:]
        return models

    @property
    def operations(self) -> int:
        """Durable operations of the server that ran last."""
        return int(_Control.from_buffer_copy(self.control.read_bytes()).count)

    def close(self) -> None:
        for link in self.links:
            link.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.3)


_counted: dict[str, int] = {}  # name of a run -> durable operations of its undisturbed server


def operations(name: str, folder: Path, shim: Path) -> int:
    if name not in _counted:
        folder.mkdir()
        run = Served(folder, name, shim)
        with working(run.links, Toy.of(run.names, run.overrides), folder):
            assert run.serve() is not None
        _counted[name] = run.operations
        run.close()
    return _counted[name]


@pytest.mark.slow
@pytest.mark.long(sample=0)
@pytest.mark.parametrize("action", ["kill_after", "kill_torn"])
@pytest.mark.parametrize("part", range(PLACES))
@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_after_a_kill_at_any_operation(
    tmp_path: Path, shim: Path, name: str, part: int, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = operations(name, tmp_path / "counted", shim)
    assert count > PLACES
    run = Served(tmp_path, name, shim)
    monkeypatch.setenv("TOY_NAMES", ",".join(run.names))
    expected, *_ = play(tmp_path / "simulated", {"data.devices": run.n, **run.overrides})
    with working(run.links, Toy.of(run.names, run.overrides), tmp_path):
        models = run.serve(action, 1 + part * (count - 1) // PLACES) or run.serve()
    assert models is not None
    assert {int(played): model for played, model in models.items()} == expected
    run.close()
