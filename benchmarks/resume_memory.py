"""Peak memory of a run that is cut off near the end of a round, and of its resume, which reads that round's journal.

    python benchmarks/resume_memory.py [--devices 1000] [--dim 100000]

Nothing is trained; every device answers in float32. Each part runs in a process of its own, one thread. The first is
killed when a tenth of the cohort has not answered yet. The figure is the largest resident set (VmHWM).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import bench
import measure

BAR = 1.10


def child(out: str, part: str, a: argparse.Namespace) -> None:
    """One part in this process; prints its peak, ``begin`` just before it is killed."""
    from edgewise.apps.simulate import simulation
    from edgewise.core import events
    from edgewise.plan.recipe import recipe

    importlib.import_module("engine_cost").ARGS = argparse.Namespace(dim=a.dim, devices=a.devices)
    began, accepted = time.perf_counter(), 0

    def told() -> None:
        journal_mb = sum(p.stat().st_size for p in Path(out).glob("journal/*")) / 1e6
        seconds = round(time.perf_counter() - began, 1)
        bench.say(peak_mb=round(measure.high_water_mb(), 1), journal_mb=round(journal_mb, 1), seconds=seconds)

    def sink(event: events.AnyEvent) -> None:
        nonlocal accepted
        accepted += isinstance(event, events.Accepted)
        if part == "begin" and accepted == a.devices * 9 // 10:
            told()
            os.kill(os.getpid(), signal.SIGKILL)

    plain = {
        "privacy": "none",
        "round": {"rounds": 1},
        "stage": [{"kind": "weigh"}],
        "eval": {"every": 0, "devices": 1},
        "compare": {"local_only": False, "centralised": False},
    }
    simulation.run(
        recipe.from_plain(plain),
        out=Path(out),
        recipe_dir=Path(),
        resume=part == "resume",
        extensions=["engine_cost"],
        sinks=[sink],
        report=False,
    )
    told()


def main() -> None:
    """Begin, kill, resume; print both peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--dim", type=int, default=100_000)
    parser.add_argument("--child", nargs=2, metavar=("OUT", "PART"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(*a.child, a)
        return
    same = [sys.executable, __file__, "--devices", str(a.devices), "--dim", str(a.dim)]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "run")
        begun = bench.start(["bash", "-c", '"$@" || test $? = 137', "-", *same, "--child", out, "begin"])
        resumed = bench.start([*same, "--child", out, "resume"])
    ratio = resumed["peak_mb"] / begun["peak_mb"]
    print(f"{bench.machine()}; {a.devices} devices, d = {a.dim}, journal {begun['journal_mb']:.0f} MB")
    print(f"peak MiB: killed {begun['peak_mb']}, resumed {resumed['peak_mb']}")
    print(f"resumed / killed: {ratio:.3f}; bar {BAR:g}: {bench.verdict(ratio, BAR)}")
    bench.say(ratio=round(ratio, 4), begun=begun, resumed=resumed)


if __name__ == "__main__":
    main()
