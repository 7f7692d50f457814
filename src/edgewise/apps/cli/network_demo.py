"""Demonstration of a real federation: a server, a gateway and five device agents on this machine, over TLS.

    OUT/server      the server's folder, with the run in OUT/server/runs
    OUT/gateway     the folder of the gateway, through which the devices reach the server
    OUT/devices     the homes of the devices: key, policy, own lines, and the record of uploads

The devices are the five characters of Shakespeare with the most text. Each device has only the lines of its character.
The gateway and the devices are separate processes. In the demonstration ``edge-llm`` the gateway is the second server
of shared sums, and the policy of each device asks for its noise and for this gateway. The server itself measures the
models, because the text is public and lies on this machine. It does not ask the devices.
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
from edgewise.apps.server.sharing import Address
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
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.link import Link
from edgewise.drivers.storage.run_store import RunStore
from edgewise.learn.text.sources import shipped_plays
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.loading import load
from edgewise.plan.recipe.recipe import Recipe

DEVICES, LINES = 5, "lines.jsonl"
FAREWELL_S = 20.0
EDGEWISE = (sys.executable, "-m", "edgewise.apps.cli.main")
DATA = """# What the owner of this device allows. `edgewise device policy --print` shows all keys.
[data]
source = "jsonl"
path = "lines.jsonl"

[privacy]
cohort = 3
"""
POLICIES = {
    "plays": 'words = ["hidden"]\n',
    "edge-llm": 'words = ["distributed_dp"]\nnoise_multiplier = 0.8\nclip_l2 = 1.05\ngateway = "{gateway}"\n',
}
RECIPES: dict[str, dict[str, Any]] = {  # keys that differ from the simulated demonstration
    "plays": {},
    "edge-llm": {
        "data.partition": "owner", "data.devices": 0, "data.max_tokens": 1000, "round.sampling": "all",
        "round.cohort": 0, "round.minimum": 0.8, "round.rounds": 2, "eval.every": 1, "eval.devices": 0,
        "distill.every": 2, "distill.steps": 10, "distill.adapt": 10,
    },
}  # fmt: skip
_WHO = (
    "Five characters of Shakespeare are the devices. Each is a process that reaches its server over TLS through a "
    "gateway. Each keeps its own lines. "
)
SAYS = {
    "plays": _WHO + "The server gets masked updates, rounded to 4 bits.",
    "edge-llm": _WHO
    + "Each trains adapters on a base in 4 bits, adds its noise, and splits the result into two shares: one "
    "for the server and one for the gateway.",
}
Tell = Callable[[events.AnyEvent], None]


def recipe_of(out: Path, overrides: dict[str, Any], what: str = "plays") -> Recipe:
    """Load a demonstration's recipe over the lines of five characters, which it writes into ``out``.

    Args:
        what: one of ``SAYS``.
    """
    _write_lines(out / LINES)
    here = {"name": f"{what}-network", "data.source": "jsonl", "data.path": LINES, "data.owner": "speaker"}
    return load(demos.demo_recipe(what), {**here, **RECIPES[what], **overrides}, BUILT_IN)


def play(out: Path, recipe: Recipe, tell: Tell, what: str = "plays") -> tuple[Path, dict[str, Any]]:
    """Enrol the devices, train with them, run the comparisons, and write the report.

    Args:
        out: a folder with the lines (``recipe_of``). what: one of ``SAYS``.
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
        _running_gateway(out / "server", out / "gateway") as (port, gateway),
        HttpServer(out / "server", port=port, tell=told, evaluator=here.probes, gateway=gateway) as server,
    ):
        token = server.token(Grant(uses=len(names), approved=True))
        operator = Link.join(server.url, server.token(Grant("admin", approved=True)), out / "operator")
        with operator, _processes_ended() as started:
            policy = DATA + POLICIES[what].format(gateway=gateway.name)
            homes = {name: out / "devices" / name for name in names}
            ids = [_enrol_device(gateway, token, home, policy, rows, name) for name, home in homes.items()]
            Allowed(out / "gateway").add(ids)
            started += map(_start_agent, homes.values())
            begun = submit(operator, recipe, out)
            server.hosting.wait(begun["run"])
            found = dict(operator.call("GET", f"/v1/runs/{begun['run']}"))
        if found["state"] != served.FINISHED:
            raise RoundError("E-ROUND", f"the run is {found['state']}: {found['why']}", f"see {out}.")
        run_dir = submission.folder(server.service, begun["run"])
        with RunStore(run_dir) as store:
            goes_on = recipe.personal.method != "none"
            compare(store, here.executor, here.probes, recipe.compare, tell, recipe.round.rounds, here.probes, goes_on)
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
def _running_gateway(server: Path, folder: Path) -> Iterator[tuple[int, Address]]:
    """Enrol a gateway at the server, and run it as a process.

    The server that enrols it has no gateway yet, so it ends here and is started anew with this one.

    Args:
        server, folder: the folders of both.
    Yields:
        The port that the server had, and the address of the gateway.
    """
    with HttpServer(server) as first:
        gateways.join(first.url, first.token(Grant("gateway", approved=True)), folder).close()
        port = first.port
    command = [*EDGEWISE, "gateway", "serve", str(folder), "--listen", "127.0.0.1:0", "--json"]
    with _processes_ended() as started:
        with open(folder / "output.log", "wb") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        started.append(process)
        assert process.stdout is not None
        status = json.loads(process.stdout.readline() or "{}")
        if "url" not in status:
            raise TransportError("E-LISTEN", "the gateway did not start.", f"see {folder}.")
        yield port, Address(str(status["gateway"]), str(status["url"]))


def _enrol_device(
    gateway: Address, token: str, home: Path, policy: str, rows: Sequence[dict[str, Any]], name: str
) -> str:
    """Enrol a device through the gateway, and write its own lines and its policy. Returns its id."""
    with Link.join(gateway.url, token, home, name, gateway=gateway.name) as link:
        id = link.name
    _write_rows(home / LINES, [{"text": row["text"]} for row in rows if row["speaker"] == name])
    (home / "policy.toml").write_text(policy, encoding="utf-8")
    return id


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
