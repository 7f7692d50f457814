"""Demonstration of a real federation: a server, a gateway and five device agents on this machine, over TLS.

    OUT/server      the server's folder, with the run in OUT/server/runs
    OUT/gateway     the folder of the gateway, through which the devices reach the server
    OUT/devices     the homes of the devices: key, policy, own lines, and the record of uploads

The devices are the five characters of Shakespeare with the most text. Each device has only the lines of its character.
The gateway and the devices are separate processes. The server itself measures the models, because the text is public
and lies on this machine. It does not ask the devices.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgewise.apps.cli import demos
from edgewise.apps.gateway import start as gateways
from edgewise.apps.report.files import write_report
from edgewise.apps.server import submission
from edgewise.apps.server.start import HttpServer
from edgewise.apps.server.submit import submit
from edgewise.apps.simulate.baselines import compare
from edgewise.apps.simulate.longer import longer
from edgewise.apps.simulate.measuring import Measuring
from edgewise.apps.simulate.personal import personalise
from edgewise.apps.simulate.samples import sample
from edgewise.core import events
from edgewise.core.errors import RoundError, TransportError
from edgewise.drivers.fleet import served
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.run_store import RunStore
from edgewise.learn.text.sources import shipped_plays
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.loading import load
from edgewise.plan.recipe.recipe import Recipe

DEVICES, LINES = 5, "lines.jsonl"
FAREWELL_S = 20.0
EDGEWISE = (sys.executable, "-m", "edgewise.apps.cli.main")
POLICY = """# What the owner of this device allows. `edgewise device policy --print` shows all keys.
[data]
source = "jsonl"
path = "lines.jsonl"

[privacy]
words = ["hidden"]
cohort = 3
"""
SAYS = (
    "Five characters of Shakespeare are the devices. Each is a process that reaches its server over TLS through a "
    "gateway. Each keeps its own lines. The server gets masked updates, rounded to 4 bits."
)
Tell = Callable[[events.AnyEvent], None]


def recipe_of(out: Path, overrides: dict[str, Any]) -> Recipe:
    """Load the demo's recipe over the lines of five characters, which it writes into ``out``."""
    _write_lines(out / LINES)
    here = {"name": "plays-network", "data.source": "jsonl", "data.path": LINES, "data.owner": "speaker"}
    return load(demos.recipe("plays"), {**here, **overrides}, BUILT_IN)


def play(out: Path, recipe: Recipe, tell: Tell) -> tuple[Path, dict[str, Any]]:
    """Enrol the devices, train with them, run the comparisons, and write the report.

    Args:
        out: a folder with the lines (``recipe_of``).
    Returns:
        The run directory and its summary.
    Raises:
        EdgewiseError: the errors of a run.
    """
    tell(events.PhaseStarted(phase="load"))
    rows = _read_rows(out / LINES)
    names = sorted({row["speaker"] for row in rows})

    def told(run: str, event: events.AnyEvent) -> None:
        tell(event)
        if isinstance(event, events.RunStarted):
            tell(events.PhaseStarted(phase="federated", steps=event.rounds))

    with (
        Measuring(recipe, out, out / "measuring") as here,
        HttpServer(out / "server", tell=told, evaluator=here.probes) as server,
    ):
        token = server.token(Grant(uses=len(names), approved=True))
        operator = Link.join(server.url, server.token(Grant("admin", approved=True)), out / "operator")
        with operator, _running_gateway(server, out / "gateway") as (url, gateway), _processes_ended() as started:
            homes = [_enrolled_device(url, gateway, token, out / "devices" / name, rows, name) for name in names]
            started += map(_start_agent, homes)
            begun = submit(operator, recipe, out)
            server.hosting.wait(begun["run"])
            found = dict(operator.call("GET", f"/v1/runs/{begun['run']}"))
        if found["state"] != served.FINISHED:
            raise RoundError("E-ROUND", f"the run is {found['state']}: {found['why']}", f"see {out}.")
        run_dir = submission.folder(server.service, begun["run"])
        with RunStore(run_dir) as store:
            goes_on = recipe.personal.method != "none"
            compare(store, here.executor, here.probes, recipe.compare, tell, recipe.round.rounds, goes_on)
            longer(store, here.executor, here.probes, recipe.compare, tell, recipe.round.rounds)
            personalise(store, here.executor, here.probes, recipe.personal, tell, recipe.round.rounds)
            if recipe.report.samples:
                sample(store, here.executor, recipe.report.samples, here.probes.devices, tell)
            tell(events.PhaseStarted(phase="report"))
            return run_dir, write_report(store, run_dir)


def _write_lines(path: Path) -> None:
    """Write the lines of the characters with the most text as a table with a column ``speaker``."""
    with gzip.open(shipped_plays(), "rt", encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    sizes = Counter[str]()
    for row in rows:
        sizes[row["speaker"]] += len(row["text"])
    names = {name for name, _ in sizes.most_common(DEVICES)}
    _write_rows(path, [row for row in rows if row["speaker"] in names])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a file of JSON lines."""
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@contextmanager
def _running_gateway(server: HttpServer, folder: Path) -> Iterator[tuple[str, str]]:
    """Run a gateway of the server as a process. Yields its address and its fingerprint."""
    gateways.join(server.url, server.token(Grant("gateway", approved=True)), folder).close()
    command = [*EDGEWISE, "gateway", "serve", str(folder), "--listen", "127.0.0.1:0", "--json"]
    with _processes_ended() as started:
        with open(folder / "output.log", "wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        started.append(process)
        assert process.stdout is not None
        status = json.loads(process.stdout.readline() or "{}")
        if "url" not in status:
            raise TransportError("E-LISTEN", "the gateway did not start.", f"see {folder}.")
        yield str(status["url"]), str(status["gateway"])


def _enrolled_device(url: str, gateway: str, token: str, home: Path, rows: Sequence[dict[str, Any]], name: str) -> Path:
    """Enrol a device and write its own lines. Returns its home."""
    Link.join(url, token, home, name, gateway=gateway).close()
    _write_rows(home / LINES, [{"text": row["text"]} for row in rows if row["speaker"] == name])
    (home / "policy.toml").write_text(POLICY, encoding="utf-8")
    return home


def _start_agent(home: Path) -> subprocess.Popen[bytes]:
    """Start a device's agent as a process of one thread, because all agents share this machine."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "EDGEWISE_TOKEN": ""}
    with open(home / "agent.log", "wb") as log:
        command = [*EDGEWISE, "device", "run", "--home", str(home)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


@contextmanager
def _processes_ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield a list of processes that end with the block."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        yield started
    finally:
        for process in started:
            process.terminate()
        for process in started:
            try:
                process.communicate(timeout=FAREWELL_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
