"""Play toy runs with a fault at the Nth durable operation, and compare everything that a run leaves.

    stage = Stage(folder)                        one loaded process, which forks a child for each run
    stage.play(out, CONFIGURATIONS["plain"])     an undisturbed run (``configurations``)
    stage.play(out, ..., Fault("kill_torn", 17)) SIGKILL in the middle of the 17th write, fsync, rename, ...
    left(out)                                    models, ledger, events, measures, memories, names of files

Linux with a C compiler only: ``available()`` says whether.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import mmap
import os
import select
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from configurations import SMALL

from edgewise.core import events
from edgewise.core.memory import flat
from edgewise.core.vector import to_bytes
from edgewise.drivers.storage.folder import MARKER
from edgewise.drivers.storage.personal_models import personal_models
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine.checkpoint import Checkpoint, Standing

HERE, SUPPORT = Path(__file__).parent, Path(__file__).parents[1] / "support"
ACTIONS = {"nothing": 0, "kill_before": 1, "kill_torn": 2, "kill_after": 3, "fail": 4, "short": 5, "stop": 6, "show": 7}
KILLS = ("kill_before", "kill_torn", "kill_after")


def available() -> str:
    """Say why faults cannot be played here. Empty where they can."""
    if sys.platform != "linux":
        return "faults are played on Linux only"
    return "" if shutil.which("cc") else "faults need a C compiler"


@dataclass(frozen=True)
class Fault:
    """``action`` at durable operation number ``at`` of the run, counted from 1; with ``forever`` at all from there on.

    ``error``: for "fail".
    """

    action: str = "nothing"
    at: int = 0
    error: int = errno.ENOSPC
    forever: bool = False


class Outcome(NamedTuple):
    """End of a run.

    Attributes:
        status: exit status, minus the signal's number. code: of a named error. said: what else was said.
        operations: number of durable operations. writes: numbers of those that can be torn.
        fired: how often the fault was played. operation: at which it was played first.
    """

    status: int
    code: str
    said: str
    operations: int
    writes: frozenset[int]
    fired: int
    operation: str


class _Control(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int64), ("fired", ctypes.c_int64), ("stopped", ctypes.c_int64), ("shown", ctypes.c_int64),
        ("last", ctypes.c_char * 64), ("kinds", ctypes.c_char * 32768),
    )  # fmt: skip


class Image(NamedTuple):
    """All below a folder: path -> permissions, and the bytes of a file or None for a folder."""

    entries: tuple[tuple[str, int, bytes | None], ...]

    def restore(self, folder: Path) -> None:
        """Put it all back into an empty folder."""
        for name, mode, raw in self.entries:  # sorted, so a folder comes before what is in it
            path = folder / name
            if raw is None:
                path.mkdir(mode)
            else:
                path.write_bytes(raw)
                path.chmod(mode)

    def state(self, scratch: Path) -> Hashable:
        """Equal for images that differ only in what SQLite does not read: a transaction that was begun and is not
        complete is none. ``scratch``: an empty folder, which is left empty."""
        others, database = [], []
        for entry in self.entries:
            (database if Path(entry[0]).name.startswith("run.db") else others).append(entry)
        for name, _, raw in database:
            (scratch / Path(name).name).write_bytes(raw or b"")
        try:
            with closing(sqlite3.connect(scratch / "run.db")) as connection:
                read = hash("\n".join(connection.iterdump()))
        except sqlite3.Error as e:
            read = hash((str(e), *database))
        for path in scratch.iterdir():
            path.unlink()
        return (*others, *(name for name, _, _ in database), read)


def image(folder: Path) -> Image:
    """Contents of a folder."""
    paths = ((path, stat.S_IMODE(path.stat().st_mode)) for path in sorted(folder.rglob("*")))
    raws = ((path, mode, None if path.is_dir() else path.read_bytes()) for path, mode in paths)
    return Image(tuple((str(path.relative_to(folder)), mode, _once(raw)) for path, mode, raw in raws))


_known: dict[bytes, bytes] = {}  # most files of an image are those of the image before it


def _once(raw: bytes | None) -> bytes | None:
    return raw if raw is None else _known.setdefault(raw, raw)


def fresh(folder: Path) -> Path:
    """An empty place for a run; it has the same path in all runs of a configuration.

    A worker that outlived its run may put a file into a folder while that is emptied: then it is emptied again.
    """
    out, give_up_s = folder / "runs" / "run", time.monotonic() + 10.0
    while out.parent.exists() and time.monotonic() < give_up_s:
        shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    return out


class Stage:
    """A process with everything loaded that forks a child for each run. Use as a context manager.

    ``folder``: for the shim and its control file; best in memory. ``environ``: of the runs.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self._shim, self._control = folder / "shim.so", folder / "control"
        build = ["cc", "-O1", "-shared", "-fPIC", "-o", str(self._shim), str(HERE / "shim.c"), "-ldl"]
        subprocess.run(build, check=True)
        self._control.write_bytes(bytes(ctypes.sizeof(_Control)))
        path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RAYON_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **(environ or {}),
            "PYTHONPATH": path,
            "LD_PRELOAD": str(self._shim),
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "stage.py"), str(folder / "warm")],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def begin(
        self, out: Path, settings: Mapping[str, Any], fault: Fault = Fault(), resume: bool = False, forks: bool = False
    ) -> int:
        """Start a run and return its process id; ``end`` waits for it.

        ``forks``: workers of a pool are forked instead of started, which takes milliseconds instead of seconds.
        """
        with open(self._control, "r+b") as f:  # in place: a process of an earlier run may still look at it
            f.write(bytes(ctypes.sizeof(_Control)))
        orders = {
            "EDGEWISE_FAULT_ROOT": str(out.parent), "EDGEWISE_FAULT_CONTROL": str(self._control),
            "EDGEWISE_FAULT_AT": str(fault.at), "EDGEWISE_FAULT_ACTION": str(ACTIONS[fault.action]),
            "EDGEWISE_FAULT_ERROR": str(fault.error), "EDGEWISE_FAULT_FOREVER": str(int(fault.forever)),
        }  # fmt: skip
        request = {
            "out": str(out), "settings": {**SMALL, **settings}, "resume": resume, "environ": orders, "forks": forks,
            "control": str(self._control), "at": fault.at, "action": ACTIONS[fault.action], "error": fault.error,
            "forever": int(fault.forever),
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._answer()["child"])

    def end(self) -> Outcome:
        """End of the run that was begun last."""
        answer, control = self._answer(), self.control()
        assert control.count <= _Control.kinds.size, "more operations than the shim has room for"
        writes = frozenset(n for n, kind in enumerate(control.kinds, 1) if kind == ord("w"))
        counted = {"operations": control.count, "fired": control.fired, "operation": control.last.decode()}
        return Outcome(**answer, **counted, writes=writes)

    def play(
        self, out: Path, settings: Mapping[str, Any], fault: Fault = Fault(), resume: bool = False, forks: bool = False
    ) -> Outcome:
        """One run from its start, or from where it was, to its end."""
        self.begin(out, settings, fault, resume, forks)
        return self.end()

    def images(
        self, out: Path, settings: Mapping[str, Any], resume: bool = False, first: int = 1, last: int = 10**9
    ) -> list[Image]:
        """Remains of a kill before each operation of a run, ``first`` to ``last``, and in each of their writes.

        The run stands still while it is looked at. Images that are equal, as before and after an fsync, come once.
        """
        found: dict[Image, None] = {}
        _known.clear()
        self.begin(out, settings, Fault("show"), resume)
        with open(self._control, "r+b") as f, mmap.mmap(f.fileno(), 0) as shared:
            control = _Control.from_buffer(shared)
            assert self._process.stdout is not None
            while not select.select([self._process.stdout], [], [], 0.0002)[0]:
                if control.shown > 0:
                    if control.count >= first:
                        found[image(out.parent)] = None
                    control.shown = -1 if control.count >= last else 0
            del control  # or the memory cannot be unmapped
        ended = self.end()
        assert ended.status == 0, ended
        found[image(out.parent)] = None
        return list(found)

    def control(self) -> _Control:
        """Operations that the shim has counted so far."""
        with open(self._control, "r+b") as f, mmap.mmap(f.fileno(), 0) as shared:
            return _Control.from_buffer_copy(shared[:])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        return dict(json.loads(self._process.stdout.readline()))


_CLOCKS = ("at_s", "seconds", "train_s", "encode_s", "aggregate_s")


def _timeless(event: events.AnyEvent) -> dict[str, Any]:
    return {k: v for k, v in msgspec.to_builtins(event).items() if k not in _CLOCKS}


def _standing(store: RunStore) -> dict[str, Standing]:
    """What the server knows of each device that it heard of, in an order of their names."""
    return store.standing(sorted({e.device for e in store.events() if isinstance(e, events.Accepted | events.Lost)}))


def _memory(path: Path, standing: Mapping[str, Standing]) -> Any:
    """The memory with which a device would go on, by the last round of it that counts (``device_state.settled``).

    Only this counts. A device that is late in the last round may be killed before it keeps what nobody uses.
    """
    import safetensors.numpy

    arrays = safetensors.numpy.load(path.read_bytes())
    device = json.loads(arrays["of"].tobytes())[-1]
    accepted = standing[device].accepted if device in standing else None
    used = [] if accepted is None else [accepted]
    for name in ("pending", "committed"):
        if f"{name}_round" in arrays and arrays[f"{name}_round"].tolist() == used:
            return device, used, {k[len(name) :]: x.tolist() for k, x in arrays.items() if k.startswith(f"{name}/")}
    return device, used, "is of other rounds only"


def _server(checkpoint: Checkpoint | None) -> dict[str, str]:
    """Digests of all vectors that the server keeps between rounds."""
    if checkpoint is None:
        return {}
    found = {**flat(checkpoint.memory), **checkpoint.state.slots, "params": checkpoint.state.params}
    return {name: hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest() for name, x in found.items()}


def left(out: Path) -> dict[str, Any]:
    """All that a finished run leaves, but for clocks: to be compared with what an undisturbed one leaves."""
    with RunStore(out) as store:
        told = [_timeless(e) for e in store.events()]
        # A run that goes on tells again that it started; what is measured is told where it was measured first.
        told = [e for e in told if e["event"] not in ("run_started", "phase_started")]
        standing = _standing(store)
        measures = {name: store.measures(name) for name in ("base", "federated", "centralised", "local_only")}
        found = {
            "models": store.models(), "ledger": store.charges(), "events": told, "measures": measures,
            "run": {k: v for k, v in (store.run() or {}).items() if k in ("id", "next_round", "unmet", "finished")},
            "server": _server(store.load()), "standing": standing,
        }  # fmt: skip
    found["personal"] = {m.device: (m.made_from, m.method, to_bytes(m.params).hex()) for m in personal_models(out)}
    memories = {path.name: _memory(path, standing) for path in sorted(out.glob("devices/*/*.safetensors"))}
    files = [p for p in out.rglob("*") if p.is_file() and p.suffix != ".safetensors" and not p.match("run.db-*")]
    for path in out.glob("*.json"):
        assert path.name == MARKER or json.loads(path.read_bytes()), path  # of the marker the name is what counts
    for path in out.glob("*.html"):
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path
    found["recipe"] = (out / "recipe.toml").read_bytes()
    return {**found, "memories": memories, "files": sorted(str(p.relative_to(out)) for p in files)}
