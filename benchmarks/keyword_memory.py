#!/usr/bin/env python3
"""Peak memory of one device process that learns wake words over a network, with torch, with numpy, and without numba.

    python benchmarks/keyword_memory.py [--rounds 3] [--ways torch,numpy,plain]

A server and two enrolled devices run as processes on this machine (`edgewise serve`, `edgewise device run`) and play
the recipe `smart-home` with random clips of its size: 25 of a device's own and 240 public ones, 148 frames of 40 bands.
Each device runs under RLIMIT_DATA, which counts all memory that is not a file's. The peak is VmHWM, which counts the
pages of libraries too. ``plain`` computes with numpy and interprets the loops of the codecs (policy: `compiled = false`
in [limits]). Bars of the peak: 1,000 MB with torch, 256 with numpy, 128 without numba. RLIMIT_DATA is the same but for
the last: OpenBLAS reserves buffers that it does not use, so there it is 256 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.apps.cli.demos import demo_recipe
from edgewise.apps.runs.toml_text import toml
from edgewise.plan.recipe.recipe import load

EDGEWISE = [sys.executable, "-m", "edgewise.apps.cli.main"]
BARS_MB = {"torch": 1000, "numpy": 256, "plain": 128}
WORDS = ("alexa", "computer", "jarvis", "smart mirror", "snowboy", "view glass")
POLICY = '[data]\nsource = "keywords"\npath = "own.npz"\n[privacy]\nwords = ["none"]\n'
LONGEST_S = 600.0


def spoken(n: int, seed: int) -> Any:
    """Draw n clips of noise, uint8[n, 148, 40]."""
    return np.random.default_rng(seed).integers(60, 190, (n, 148, 40), np.uint8)


def edgewise(*arguments: object, home: Path, **more: str) -> Any:
    """Run a command of the program, and return its result."""
    environment = {**os.environ, "EDGEWISE_HOME": str(home), **more}
    done = subprocess.run([*EDGEWISE, *map(str, arguments), "--json"], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    return told.get("result", told)


def peak_mb(pid: int) -> float:
    """Return the most resident memory that a process has had, 10^6 bytes."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def measured(way: str, rounds: int, folder: Path) -> list[float]:
    """Play the recipe on two devices, and return the peak of each."""
    changes = {
        "round.rounds": rounds,
        "round.cohort": 2,
        "round.minimum": 1.0,
        "keywords.computes": "torch" if way == "torch" else "numpy",
    }
    recipe = load(demo_recipe("smart-home"), {**changes, "keywords.base_steps": 0, "eval.every": 0})
    tables = recipe.resolved()
    tables["data"]["path"] = "vendor.npz"
    (folder / "recipe.toml").write_text(toml(tables))
    np.savez(folder / "vendor.npz", **{word: spoken(160, i) for i, word in enumerate(WORDS)})
    server = subprocess.Popen(
        [*EDGEWISE, "serve", str(folder / "server"), "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE
    )
    agents: list[subprocess.Popen[bytes]] = []
    try:
        assert server.stdout is not None
        told, admin = json.loads(server.stdout.readline()), folder / "admin"
        edgewise("join", told["url"], home=admin, EDGEWISE_TOKEN=told["token"])
        token = edgewise("token", "create", "--uses", 2, "--approved", home=admin)["text"]
        homes = [folder / f"device-{i}" for i in range(2)]
        for i, home in enumerate(homes):
            edgewise("join", told["url"], home=home, EDGEWISE_TOKEN=token)
            (home / "policy.toml").write_text(POLICY + ("[limits]\ncompiled = false\n" if way == "plain" else ""))
            word = np.array([WORDS[i]] * 25 + [word for word in WORDS for _ in range(40)])
            owner = np.array(["home"] * 25 + [""] * 240)
            np.savez(home / "own.npz", x=spoken(265, 9 + i), keyword=word, owner=owner)
        run = edgewise("run", "submit", folder / "recipe.toml", home=admin)["run"]
        limit = max(BARS_MB[way], 256) * 10**6
        agents = [
            subprocess.Popen(
                [*EDGEWISE, "device", "run", "--home", str(home)],
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
            )
            for home in homes
        ]
        deadline = time.monotonic() + LONGEST_S
        while (found := edgewise("run", "show", run[:12], home=admin))["state"] == "running":
            if time.monotonic() > deadline:
                raise SystemExit(f"the run did not end within {LONGEST_S:g} s")
            time.sleep(1)
        if found["state"] != "finished":
            raise SystemExit(f"the run ended as {found['state']}: {found['why']}")
        return [peak_mb(agent.pid) for agent in agents]
    finally:
        for process in (*agents, server):
            process.terminate()
            process.wait()


def main() -> None:
    """Measure each way and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(BARS_MB))
    given = parser.parse_args()
    print("way     bar MB  peak MB of each device")
    for way in given.ways.split(","):
        with tempfile.TemporaryDirectory() as folder:
            peaks = measured(way, given.rounds, Path(folder))
        print(f"{way:6}  {BARS_MB[way]:6,}  {'  '.join(f'{peak:.0f}' for peak in peaks)}", flush=True)


if __name__ == "__main__":
    main()
