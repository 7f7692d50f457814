"""What the benchmarks share: starting a program that prints one ``RESULT {json}`` line, and a few statistics."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
}


def script(name: str) -> str:
    """Path of a file beside this one."""
    return str(HERE / name)


def start(command: Sequence[str], **environment: str) -> dict[str, Any]:
    """Run a program with one thread per process; its RESULT line as a dict, or RuntimeError with its output."""
    done = subprocess.run(command, env={**os.environ, **QUIET, **environment}, capture_output=True, text=True)
    return result(done.stdout, done.stderr, done.returncode)


def result(stdout: str, stderr: str, code: int) -> dict[str, Any]:
    """The last RESULT line of a program's output."""
    lines = [s for s in stdout.splitlines() if s.startswith("RESULT ")]
    if code or not lines:
        raise RuntimeError(f"exit status {code}\n{stdout[-3000:]}\n{stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def say(**values: Any) -> None:
    """Print this program's own RESULT line."""
    print("RESULT " + json.dumps(values), flush=True)


def note(text: str) -> None:
    """Progress, to standard error, with the load of the machine at that moment."""
    load = f"{os.getloadavg()[0]:.2f}" if hasattr(os, "getloadavg") else "?"
    print(f"[{time.strftime('%H:%M:%S', time.gmtime())} UTC, load {load}] {text}", file=sys.stderr, flush=True)


def interleave(count: int, **runs: Callable[[], dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Call A, B, ..., A, B, ... ``count`` times each, so that a slow minute of the machine meets all of them."""
    out: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    for i in range(count):
        for name, run in runs.items():
            note(f"{name} {i + 1}/{count}")
            out[name].append(run())
    return out


def spread(values: Sequence[float]) -> str:
    """``median (min to max, n)``."""
    return f"{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g}, n = {len(values)})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Ratio of the medians, and the range of the pairwise ratios of runs that stood beside each other."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return f"{ratio(ours, theirs):.3f} (pairs {min(each):.3f} to {max(each):.3f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Ratio of the medians."""
    return statistics.median(ours) / statistics.median(theirs)


def machine() -> str:
    """Processor, cores, memory and Python, for the record; no names of machines."""
    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [s.split(":", 1)[1].strip() for s in info.read_text().splitlines() if s.startswith("model name")]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else 0.0
    return f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def verdict(value: float, bar: float) -> str:
    """``met`` or by how much it is missed."""
    return "met" if value <= bar else f"MISSED by {100 * (value / bar - 1):.1f} %"
