"""The side-by-side job on enrolled devices: a server and a process for each device, over TLS.

    python benchmarks/network_task.py --peers DIR --arch gpt --params 1000000 --clients 10 --local-steps 10 --rounds 6

Arguments and the RESULT line are those of ``peer_task.py``; model, data, batch order and plain average too. A steady
round is from the end of one round to the end of the next. ``bare_round_s`` is the bare torch loop of DIR in the same
minutes, one thread, all devices one after the other: what the round would take without any framework on one core.
Every frame is signed, sent over TLS, durable before it is acknowledged, and sealed until its round is over.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

T0 = time.time()
import bench  # noqa: E402
import numpy as np  # noqa: E402
import peer_task  # noqa: E402
import psutil  # noqa: E402

from edgewise.apps.server import submission  # noqa: E402
from edgewise.apps.server.start import HttpServer  # noqa: E402
from edgewise.core import events, vector  # noqa: E402
from edgewise.drivers.fleet.members import Grant  # noqa: E402
from edgewise.drivers.http.link import Link  # noqa: E402
from edgewise.drivers.storage.run_store import RunStore  # noqa: E402
from edgewise.plan.recipe import recipe  # noqa: E402

POLICY = '[data]\nsource = "text"\npath = "none.txt"\n[privacy]\nwords = ["none"]\ncohort = 1\n'
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def network(a: Namespace) -> Any:
    """The peers' module."""
    sys.path.insert(0, str(Path(a.peers) / "common"))
    import fedbench_common as fb

    return fb.build_model(a.params, a.arch, a.seed)


def device(home: Path, client: int, a: Namespace) -> None:
    """Be a device: the peers' shard of this client, and nothing else."""
    from edgewise.apps.device.agent import work
    from edgewise.engine.trainer import registered
    from edgewise.learn.shards import TensorShard
    from edgewise.learn.torch_task import TorchTrainer

    module = network(a)
    import fedbench_common as fb

    x, y = fb.data_for(a, client)

    def make(asked: Any, folder: Path, name: str, layout: Any) -> Any:
        shards = {name: TensorShard((x, y), (x[:2], y[:2]), shuffle=False)}
        return registered(TorchTrainer(module, lambda m, b: (m.loss_of(*b), float(len(b[0]))), shards, asked.training))

    work(home, make=make, patience_s=30.0)


def main() -> None:
    """Play the job and print its RESULT line."""
    parser = peer_task.arguments()
    parser.add_argument("--device", default="", help="be the device of this home")
    parser.add_argument("--client", type=int, default=0)
    a = parser.parse_args()
    if a.device:
        device(Path(a.device), a.client, a)
        return
    told: list[events.AnyEvent] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with HttpServer(folder / "server", tell=lambda run, event: told.append(event)) as server:
            final, memory = play(server, folder, a)
    finished = [e for e in told if isinstance(e, events.RoundFinished)]
    first = next(e.at_s for e in told if isinstance(e, events.RoundStarted))
    edges = [first, *(e.at_s for e in finished)]
    rounds = [b - c for b, c in zip(edges[1:], edges[:-1], strict=True)]
    steady_s, bare_s = statistics.median(rounds[1:] or rounds), bare(a)
    line = {
        "framework": "edgewise-network", "clients": a.clients, "rounds": a.rounds, "local_steps": a.local_steps,
        "params": int(final.size), "arch": a.arch, "setup_s": round(first - T0, 2),
        "round_s": [round(r, 4) for r in rounds], "steady_round_s": round(steady_s, 4),
        "bare_round_s": round(bare_s, 4), "ratio": round(steady_s / bare_s, 2),
        "aggregate_s": round(statistics.median(e.aggregate_s for e in finished), 4), **memory,
        "l2": round(float(np.linalg.norm(final.astype(np.float64))), 6),
    }  # fmt: skip
    print("RESULT " + json.dumps(line), flush=True)


def play(server: HttpServer, folder: Path, a: Namespace) -> tuple[Any, dict[str, float]]:
    """Enrol and start the devices, play; returns the final model, and memory at the end."""
    from edgewise.learn.models import modules

    token = server.token(Grant(uses=a.clients, approved=True))
    started = []
    for client in range(a.clients):
        home = folder / f"device-{client}"
        Link.join(server.url, token, home).close()
        (home / "policy.toml").write_text(POLICY)
        command = [sys.executable, *sys.argv, "--device", str(home), "--client", str(client)]
        started.append(subprocess.Popen(command, env={**os.environ, **QUIET}))
    try:
        module = network(a)
        spec = modules.module_layout(module)
        raw = bytes(vector.to_bytes(modules.read_module_vector(module, spec)))
        server.service.staging.put(vector.digest(raw), 0, len(raw), raw)
        plain = peer_task.tables(Namespace(**{**vars(a), "engine": "inproc"}))
        plain["round"] = {"rounds": a.rounds, "deadline_s": 3600.0, "minimum": 1.0}
        plain["simulation"] = {}
        tables = recipe.from_plain(plain).resolved()
        wanted = submission.Submission(
            recipe=tables, spec=spec.to_list(), initial=vector.digest(raw), model=submission.OWN
        )
        run = server.hosting.submit(wanted, "benchmark").run
        server.hosting.wait(run)
        memory = {
            "server_pss_mb": round(pss_mb(os.getpid()), 1),
            "devices_pss_mb": round(sum(pss_mb(p.pid) for p in started), 1),
        }
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
    with RunStore(submission.folder(server.service, run)) as store:
        return store.blob(store.models()[a.rounds]), memory


def pss_mb(pid: int) -> float:
    """Proportional memory of a process."""
    return float(psutil.Process(pid).memory_full_info().pss) / 1e6


def bare(a: Namespace) -> float:
    """Seconds of a steady round of the bare torch loop."""
    job = ["--arch", a.arch, "--params", a.params, "--clients", a.clients, "--local-steps", a.local_steps]
    job += ["--rounds", min(a.rounds, 4), "--batch-size", a.batch_size, "--lr", a.lr, "--seed", a.seed]
    command = [sys.executable, f"{a.peers}/bare/run.py", *map(str, job)]
    done = subprocess.run(command, env={**os.environ, **QUIET}, capture_output=True, text=True, check=True)
    return float(bench.result(done.stdout, done.stderr, 0)["steady_round_s"])


if __name__ == "__main__":
    main()
