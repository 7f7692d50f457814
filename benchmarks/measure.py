"""Peak memory (PSS), CPU and wall time of a command with its whole process tree (Linux).

    python benchmarks/measure.py -- python my_program.py

PSS counts a page that n processes share as 1/n in each. Processes that leave the tree are found by a variable in their
environment. Reading /proc costs the measured program a little time, so timings are taken in runs of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import bench

TAG = "EDGEWISE_BENCH_ID"


def measure(command: Sequence[str], every_s: float = 0.25, **environment: str) -> dict[str, Any]:
    """Run a command and sample the memory of its tree: its RESULT (where it prints one), ``peak_pss_mb``, ..."""
    tag = uuid.uuid4().hex
    child = subprocess.Popen(
        command,
        env={**os.environ, **bench.QUIET, **environment, TAG: tag},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    texts = {}
    readers = [
        threading.Thread(target=lambda n=name, s=stream: texts.update({n: s.read()}), daemon=True)
        for name, stream in (("out", child.stdout), ("err", child.stderr))
    ]
    for reader in readers:
        reader.start()
    began, peak, processes = time.perf_counter(), 0, 0
    while child.poll() is None:
        pids = _tree(child.pid, tag.encode())
        total = sum(map(_pss_kb, pids))
        if total > peak:
            peak, processes = total, len(pids)
        time.sleep(every_s)
    wall = time.perf_counter() - began
    for reader in readers:
        reader.join(timeout=10)  # a daemon that outlives the command may hold the pipe
    found = {"peak_pss_mb": round(peak / 1024, 1), "processes_at_peak": processes, "wall_s": round(wall, 2)}
    try:
        return {**bench.result(texts.get("out", ""), texts.get("err", ""), child.returncode), **found}
    except RuntimeError:
        if child.returncode:
            raise
        return found


def _tree(root: int, tag: bytes) -> set[int]:
    parents: dict[int, int] = {}
    found = {root}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as f:
                parents[int(name)] = int(f.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{name}/environ", "rb") as f:
                if tag in f.read():
                    found.add(int(name))
        except OSError:  # it has just ended
            continue
    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _pss_kb(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            return next((int(line.split()[1]) for line in f if line.startswith("Pss:")), 0)
    except OSError:
        return 0


def high_water_mb() -> float:
    """The largest resident set that this process has had, in MiB."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    bench.say(**measure(sys.argv[sys.argv.index("--") + 1 :]))
