"""A round of secure aggregation over HTTPS, beside the same round in one process.

    python benchmarks/secagg_network.py [--devices 8] [--dim 65536] [--rounds 2]

The toy federation of the tests, whose training is next to nothing: each device has a key, a policy, a record and a
state on the disk, and sends masked updates over TLS on loopback. The devices are threads of one process, the server is
another one. The same recipe is then simulated. Times are those of the last round, when everything is loaded. Processor
seconds are of the whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench

sys.path[:0] = [str(bench.HERE.parent / "tests" / "support"), str(bench.HERE.parent / "tests")]

from owned import ended, owned, submitted, working  # noqa: E402
from served import joined  # noqa: E402
from toy_recipe import PLAIN  # noqa: E402

from edgewise.apps.server.start import HttpServer  # noqa: E402
from edgewise.apps.simulate import simulation  # noqa: E402
from edgewise.core import events  # noqa: E402
from edgewise.drivers.http.limits import ServerLimits  # noqa: E402
from edgewise.drivers.storage.run_store import RunStore  # noqa: E402
from edgewise.plan.recipe import recipe as recipes  # noqa: E402

FREE = ServerLimits(1e9, 1e9, 1e9, 1e9, 1e12, 1e12)
POLICY = "[privacy]\nwords = ['hidden']\n[limits]\nupload_mb = 1000.0\nupload_mb_per_day = 1e6\n"
HIDDEN: dict[str, Any] = {
    "merge": {"kind": "secure_sum"},
    "privacy": "hidden",
    "metrics": "none",
    "round.minimum": 0.5,
    "round.deadline_s": 300.0,
    "eval.every": 0,
}


def devices(homes: list[Path]) -> None:
    """Be the devices until standard input ends. Print the processor seconds."""
    with working(*homes):
        sys.stdin.read()
    print(json.dumps(time.process_time()), flush=True)


def last_round_s(out: Path) -> float:
    """Seconds of the last round of a run's folder."""
    with RunStore(out) as store:
        return [e.seconds for e in store.events() if isinstance(e, events.RoundFinished)][-1]


def over_https(folder: Path, n: int, settings: dict[str, Any]) -> dict[str, float]:
    """Play the run on enrolled devices."""
    with HttpServer(folder / "server", limits=FREE) as server, joined(server, folder / "admin", "admin") as admin:
        homes = [owned(server, folder / f"device-{i}", POLICY) for i in range(n)]
        run = submitted(server, admin, **settings)
        command = [sys.executable, bench.script("secagg_network.py"), "--homes", *map(str, homes)]
        began, used = time.perf_counter(), time.process_time()
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        state = ended(admin, run, 400.0)
        seconds, server_s = time.perf_counter() - began, time.process_time() - used
        out, _ = child.communicate()
        assert state == "finished", state
    round_s = last_round_s(folder / "server" / "runs" / run[:32])
    return {"round_s": round_s, "whole_s": seconds, "server_cpu_s": server_s, "devices_cpu_s": float(json.loads(out))}


def in_process(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Play the run in this process."""
    began, used = time.perf_counter(), time.process_time()
    recipe = recipes.parse(PLAIN, overrides=settings)
    simulation.run(recipe, out=folder, recipe_dir=folder, extensions=["toy"], report=False)
    whole = {"whole_s": time.perf_counter() - began, "cpu_s": time.process_time() - used}
    return {"round_s": last_round_s(folder), **whole}


def main() -> None:
    """Measure and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--dim", type=int, default=2**16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--homes", nargs="*", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.homes:
        devices([Path(home) for home in a.homes])
        return
    os.environ["TOY_DIM"] = str(a.dim)
    print(bench.machine(), "load", *(f"{load:.1f}" for load in os.getloadavg()))
    folder = Path(tempfile.mkdtemp())
    settings = {**HIDDEN, "round.rounds": a.rounds}
    try:
        https = over_https(folder / "https", a.devices, settings)
        no_baselines = {"compare.local_only": False, "compare.centralised": False}
        alone = in_process(
            folder / "alone", {**settings, **no_baselines, "data.partition": "iid", "data.devices": a.devices}
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, found in (("https", https), ("in process", alone)):
        print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()))
    print(f"ratio of the last round {https['round_s'] / alone['round_s']:.2f}")
    bench.say(devices=a.devices, dim=a.dim, https_round_s=https["round_s"], alone_round_s=alone["round_s"])


if __name__ == "__main__":
    main()
