"""Checks of ``edgewise doctor``: the state of this machine, and a fix for each fault.

The module imports nothing heavy.
"""

from __future__ import annotations

import gzip
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import zlib
from collections.abc import Callable, Iterable
from importlib import metadata, resources
from pathlib import Path
from typing import NamedTuple

OK, NOTE, BAD = "ok", "note", "bad"
LOWEST_PYTHON = (3, 11)
DISK_BYTES, MEMORY_BYTES = 1e9, 2e9
CPU_TORCH = "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"
TRAIN = ("torch", "transformers", "tokenizers", "peft", "matplotlib")
CORE = ("numpy", "numba", "msgspec", "pydantic", "sqlalchemy", "safetensors", "rich", "typer")


class Check(NamedTuple):
    """Result of one check: its state (``ok``, ``note`` = works with a limit, ``bad``), the finding, and the fix."""

    name: str
    state: str
    found: str
    fix: str | None = None


def examine(folder: Path) -> list[Check]:
    """Run all checks of this machine. ``folder`` is the place of future runs."""
    return [
        _check_python(),
        _check_packages("core packages", CORE, BAD, "pip install edgewise"),
        _check_packages(
            "training packages", TRAIN, BAD, f"in a clone `make setup`, else {CPU_TORCH}, then the extra [train]"
        ),
        Check("graphics card", NOTE, f"not used: training runs on the CPU. torch without CUDA is enough: {CPU_TORCH}"),
        _check_cores(),
        _check_memory(),
        _check_disk(folder),
        _check_writable(folder),
        _check_bfloat16(),
        _bundled_model(),
        _check_plays(),
        _check_stdlib(),
    ]


def doctor_is_healthy(findings: Iterable[Check]) -> bool:
    """Tell whether no check of `edgewise doctor` is bad."""
    return all(f.state != BAD for f in findings)


def cores() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_python() -> Check:
    """Check the version of Python."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < LOWEST_PYTHON:
        return Check("python", BAD, found, "install Python 3.11 or newer")
    return Check("python", OK, found)


def _check_packages(name: str, wanted: Iterable[str], state: str, fix: str) -> Check:
    """Check that packages are installed."""
    have, missing = [], []
    for package in wanted:
        try:
            have.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        return Check(name, state, f"missing: {', '.join(missing)}", fix)
    return Check(name, OK, ", ".join(have))


def _check_cores() -> Check:
    """Count the processors."""
    n = cores()
    if n == 1:
        return Check("processors", NOTE, "1: devices are simulated one after another", "use --engine inproc")
    return Check("processors", OK, f"{n}: --engine pool --workers {n}")


def memory_bytes() -> float | None:
    """Return the free memory in bytes, capped by a container's limit. None if the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        try:
            return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        except (AttributeError, OSError, ValueError):
            return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        return min(free, float(limit)) if limit != "max" else free
    except (OSError, ValueError):
        return free


def _check_memory() -> Check:
    """Check the free memory."""
    free = memory_bytes()
    if free is None:
        return Check("memory", NOTE, "this system does not tell")
    found = f"{free / 1e9:.1f} GB free"
    if free < MEMORY_BYTES:
        return Check("memory", NOTE, found, "each worker takes about 0.7 GB: lower --workers")
    return Check("memory", OK, found)


def _check_disk(folder: Path) -> Check:
    """Check the free space of a folder's disk."""
    at = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    free = shutil.disk_usage(at).free
    found = f"{free / 1e9:.1f} GB free in {at}"
    if free < DISK_BYTES:
        return Check("disk", BAD, found, "free 1 GB, or choose another --out")
    return Check("disk", OK, found)


def _check_writable(folder: Path) -> Check:
    """Check that files can be made in a folder."""
    at = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    try:
        with tempfile.TemporaryFile(dir=at):
            return Check("write access", OK, str(at))
    except OSError as e:
        return Check("write access", BAD, f"{at}: {e.strerror}", "choose another folder with --out")


def _check_bfloat16() -> Check:
    """Check whether the processor computes bfloat16."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return Check("bfloat16", NOTE, "this system does not tell; training uses float32")
    if flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        return Check("bfloat16", OK, "in hardware: training is faster")
    return Check("bfloat16", NOTE, "not in hardware: training uses float32, which is slower and as accurate")


def _bundled_model() -> Check:
    from safetensors import SafetensorError, safe_open

    folder = Path(str(resources.files("edgewise"))) / "assets" / "student"
    fix = "reinstall edgewise"
    try:
        missing = [n for n in ("config.json", "tokenizer.json") if not (folder / n).is_file()]
        with safe_open(folder / "model.safetensors", framework="numpy") as f:
            tensors = len(list(f.keys()))
    except (OSError, SafetensorError) as e:
        return Check("bundled model", BAD, f"{folder}: {e}", fix)
    if missing:
        return Check("bundled model", BAD, f"{folder} has no {', '.join(missing)}", fix)
    return Check(
        "bundled model", OK, f"{tensors} tensors, {(folder / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    )


def _check_plays() -> Check:
    """Check the text of the demonstration ``plays``."""
    path = Path(str(resources.files("edgewise"))) / "assets" / "plays" / "plays.jsonl.gz"
    try:
        with gzip.open(path) as f:
            speeches = sum(1 for _ in f)
    except (OSError, EOFError, zlib.error) as e:
        return Check("demo text", BAD, f"{path}: {e}", "reinstall edgewise")
    return Check("demo text", OK, f"{speeches:,} speeches")


def _check_stdlib() -> Check:
    """Check the text of the demonstration ``code``: source files of Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    found = [n for n in ("asyncio", "email", "http", "json", "unittest", "xml") if any(root.glob(f"{n}/*.py"))]
    if len(found) < 2:
        fix = "use a Python whose library has its source, or your own text (data.source)"
        return Check("demo code's text", NOTE, f"no source text in {root}", fix)
    return Check("demo code's text", OK, f"standard library in {root}")


def doctor_lines(findings: Iterable[Check], mark: Callable[[str], str] | None = None) -> list[str]:
    """Format each finding as a line, followed by its fix. ``mark`` turns a state into its sign."""
    signs = {OK: "ok  ", NOTE: "note", BAD: "BAD "}
    out = []
    for f in findings:
        out.append(f"{mark(f.state) if mark else signs[f.state]}  {f.name:<18} {f.found}")
        if f.fix:
            out.append(f"{'':24} fix: {f.fix}")
    return out
