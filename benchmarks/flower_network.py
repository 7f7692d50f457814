"""The side-by-side job in Flower's deployment engine: a SuperLink and a SuperNode a device, on loopback.

    python -m venv flower && flower/bin/pip install flwr torch
    flower/bin/python benchmarks/flower_network.py --peers DIR --arch gpt --params 1000000 --clients 10 \
        --local-steps 10 --rounds 6

Run it with the interpreter of Flower's environment. Nothing of edgewise is imported. Arguments and the RESULT line are
those of ``network_task.py``, which is the other side. Connections are plain (``--insecure``), which favours Flower. A
steady round is from the end of one round to the end of the next.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

T0 = time.time()
BIN = Path(sys.executable).parent
CONTROL = 19392  # port of the SuperLink that takes runs
PATIENCE_S = 420.0
SERVER = """
import time
import fedbench_common as fb
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
import json

app = ServerApp()


class Timed(FedAvg):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.first, self.marks = None, []

    def configure_train(self, *a, **k):
        self.first = self.first or time.time()
        return super().configure_train(*a, **k)

    def aggregate_train(self, *a, **k):
        found = super().aggregate_train(*a, **k)
        self.marks.append(time.time())
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    a = fb.parse(json.loads(context.run_config["argv"]))
    model = fb.build_model(a.params, a.arch, a.seed)
    nodes = {"min_train_nodes": a.clients, "min_available_nodes": a.clients}
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, **nodes)
    found = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=a.rounds)
    import torch
    torch.save({"state": found.arrays.to_torch_state_dict(), "first": strategy.first, "marks": strategy.marks},
               context.run_config["out"])
"""
CLIENT = """
import json
import fedbench_common as fb
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    a = fb.parse(json.loads(context.run_config["argv"]))
    model = fb.build_model(a.params, a.arch, a.seed)
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    x, y = fb.data_for(a, int(context.node_config["partition-id"]))
    loss = fb.local_train(model, x, y, a.batch_size, a.lr)
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()),
                          "metrics": MetricRecord({"train_loss": loss, "num-examples": len(x)})})
    return Message(content=content, reply_to=msg)
"""
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "sidebyside"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "bench"

[tool.flwr.app.components]
serverapp = "sidebyside.server_app:app"
clientapp = "sidebyside.client_app:app"

[tool.flwr.app.config]
argv = '{argv}'
out = "{out}"
"""
LINK = """[superlink]
default = "here"

[superlink.here]
address = "127.0.0.1:{control}"
insecure = true
"""


def main() -> None:
    """Start the engine, run the app, print a RESULT line."""
    at = sys.argv.index("--peers")
    peers = Path(sys.argv[at + 1]).resolve()
    argv = sys.argv[1:at] + sys.argv[at + 2 :]
    sys.path.insert(0, str(peers / "common"))
    import fedbench_common as fb
    import flwr

    a = fb.parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        found = play(Path(scratch), peers, argv, a)
    fb.report(a, "flower deployment", flwr.__version__, T0, found["first"], found["marks"], found["state"])


def play(scratch: Path, peers: Path, argv: list[str], a: Any) -> dict[str, Any]:
    """Write the app, start the engine, run the app; returns the model, and the times of its rounds."""
    import torch

    home, app, out = scratch / "home", scratch / "app", scratch / "out.pt"
    (app / "sidebyside").mkdir(parents=True)
    home.mkdir()
    (app / "sidebyside" / "__init__.py").touch()
    (app / "sidebyside" / "server_app.py").write_text(SERVER)
    (app / "sidebyside" / "client_app.py").write_text(CLIENT)
    (app / "pyproject.toml").write_text(PROJECT.format(argv=json.dumps(argv), out=out))
    (home / "config.toml").write_text(LINK.format(control=CONTROL))
    env = os.environ | {
        "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(peers / "common"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    link = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    link += ["--host", "127.0.0.1", "--port", str(CONTROL)]
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{CONTROL}", "--host", "127.0.0.1", "--port"]
    commands = [link]
    for i in range(a.clients):
        shard = f"partition-id={i} num-partitions={a.clients}"
        commands.append([*node, str(CONTROL + 8 + i), "--node-config", shard])
    processes: list[subprocess.Popen[bytes]] = []
    with (scratch / "log").open("w") as log:
        try:
            for command in commands:
                command[0] = str(BIN / command[0])
                processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=scratch))
                time.sleep(5 if len(processes) == 1 else 0)
            time.sleep(10)
            begun = subprocess.run(
                [str(BIN / "flwr"), "run", str(app), "here"], env=env, capture_output=True, text=True
            )
            end = time.monotonic() + PATIENCE_S
            while not begun.returncode and not out.exists() and time.monotonic() < end:
                time.sleep(0.5)
            if not out.exists():
                print(begun.stdout, begun.stderr, (scratch / "log").read_text()[-4000:], sep="\n", file=sys.stderr)
                raise SystemExit("no result")
            time.sleep(1)  # The app may still be writing.
            return torch.load(out)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()


if __name__ == "__main__":
    main()
