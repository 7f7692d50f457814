"""Peak memory when the population grows from 100 to 10,000 devices and the cohort stays at 50.

    python benchmarks/memory.py [--populations 100,10000] [--cohort 50] [--rounds 3] [--base bundled]

Two trainers, each run in a process of its own, one thread: ``text`` is the real one (a generated JSON-lines table with
that many owners, three rows each; a model directory or the bundled model), ``idle`` trains nothing. The figure is the
largest resident set of the process (VmHWM), from start to the written report.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import measure
import numpy as np

BAR = 1.10
TRAINERS = ("text", "idle")
WORDS = (
    "the federation of small models learns from text that stays where it is and every device answers with a few bytes "
    "so that the server can add what it was sent without ever reading a line of it"
).split()


def write_table(path: Path, owners: int, rows: int = 3, words: int = 90) -> None:
    """Rows of random words; owner after owner."""
    rng = np.random.default_rng(0)
    with path.open("w") as f:
        for owner in range(owners):
            for _ in range(rows):
                text = " ".join(WORDS[i] for i in rng.integers(len(WORDS), size=words))
                f.write(json.dumps({"owner": f"u{owner:06d}", "text": text}) + "\n")


def tables(trainer: str, path: str, a: argparse.Namespace) -> dict[str, Any]:
    """The recipe: fixed sampling, few steps."""
    data = {"source": "jsonl", "path": path, "owner": "owner", "sequence_len": 64} if trainer == "text" else {}
    return {
        "name": "memory",
        "privacy": "none",
        "model": {"base": a.base},
        "data": data,
        "round": {"rounds": a.rounds, "sampling": "fixed", "cohort": a.cohort},
        "training": {"local_steps": 2, "batch": 4},
        "stage": [{"kind": "weigh"}, {"kind": "quantize", "bits": 4}],
        "eval": {"every": 1, "devices": 10},
        "compare": {"local_only": False, "centralised": False},
    }


def child(trainer: str, population: int, a: argparse.Namespace) -> None:
    """One run in this process; prints its peak."""
    from edgewise.apps.simulate import simulation
    from edgewise.plan.recipe import recipe

    extensions = []
    if trainer == "idle":
        importlib.import_module("engine_cost").ARGS = argparse.Namespace(dim=100_000, devices=population)
        extensions = ["engine_cost"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.jsonl"
        if trainer == "text":
            write_table(path, population)
        began = time.perf_counter()
        simulation.run(
            recipe.from_plain(tables(trainer, str(path), a)),
            out=Path(folder) / "run",
            recipe_dir=Path(),
            extensions=extensions,
            report=True,
        )
    bench.say(peak_mb=round(measure.high_water_mb(), 1), seconds=round(time.perf_counter() - began, 1))


def main() -> None:
    """Run every trainer and population, interleaved; print growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", default="100,10000")
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", default="bundled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trainers", default=",".join(TRAINERS))
    parser.add_argument("--child", nargs=2, metavar=("TRAINER", "POPULATION"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a.child[0], int(a.child[1]), a)
        return
    sizes = [int(n) for n in a.populations.split(",")]
    trainers = a.trainers.split(",")
    same = ["--cohort", str(a.cohort), "--rounds", str(a.rounds), "--base", a.base]
    runs = {
        f"{t}_{n}": lambda t=t, n=n: bench.start([sys.executable, __file__, *same, "--child", t, str(n)])
        for t in trainers
        for n in sizes
    }
    done = bench.interleave(a.repeats, **runs)
    print(f"\n{bench.machine()}; cohort {a.cohort}, {a.rounds} rounds, base {a.base}")
    peaks = {name: [r["peak_mb"] for r in results] for name, results in done.items()}
    for name, values in peaks.items():
        seconds = statistics.median(r["seconds"] for r in done[name])
        print(f"{name:14} peak {bench.spread(values)} MiB, {seconds:.1f} s")
    growth = {t: bench.ratio(peaks[f"{t}_{sizes[-1]}"], peaks[f"{t}_{sizes[0]}"]) for t in trainers}
    for t, value in growth.items():
        print(f"{t}: {sizes[0]} -> {sizes[-1]} devices: {value:.3f}; bar {BAR:g}: {bench.verdict(value, BAR)}")
    bench.say(growth={k: round(v, 4) for k, v in growth.items()}, peak_mb=peaks)


if __name__ == "__main__":
    main()
