"""A fault at the Nth durable operation, for every N: the run leaves in the end what an undisturbed one leaves.

``make test`` walks a sample of the operations, ``make test-long`` all of them, with the pool of workers too.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import kit
import pytest
from kit import CONFIGURATIONS, KILLS, Fault, Outcome, Stage, left
from long import LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(kit.available()), reason=kit.available()),
    pytest.mark.timeout(3600),
]

POOL: Mapping[str, Any] = {"simulation.engine": "pool", "simulation.workers": 2}
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of runs are written there."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    made = Path(tempfile.mkdtemp(prefix="edgewise-faults-", dir=place))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def stage(folder: Path) -> Iterator[Stage]:
    with Stage(folder) as made:
        yield made


def chosen(operations: int, sample: int, offset: int) -> list[int]:
    """Numbers of operations to try: all of them, or ``sample`` spread evenly, others for each ``offset``."""
    if LONG:
        return list(range(1, operations + 1))
    step = max(1, operations // sample)
    return list(range(1 + offset * 7 % step, operations + 1, step))


def go_on(stage: Stage, out: Path, settings: Mapping[str, Any]) -> Outcome:
    """Resume; or begin, where the run was killed before it was registered."""
    after = stage.play(out, settings, resume=True)
    if after.code == "E-RESUME" and "no run" in after.said:
        after = stage.play(out, settings)
    return after


def calm(stage: Stage, folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any]]:
    """How the undisturbed run ends and what it leaves; ``out`` has the same path in all runs of a configuration."""
    out = folder / "runs" / "run"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    outcome = stage.play(out, settings)
    assert outcome.status == 0, (name, outcome)
    found = left(out)
    assert found["memories"] or name not in ("plain", "hidden", "ef21")
    return outcome, found


def fresh(folder: Path) -> Path:
    out = folder / "runs" / "run"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    return out


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_kill_at_any_durable_operation_leaves_no_trace(stage, folder, name):
    settings, offset = CONFIGURATIONS[name], list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    kills = 0
    for i, at in enumerate(chosen(undisturbed.operations, 6, offset)):
        fault, out = Fault(KILLS[(i + offset) % 3], at), fresh(folder)
        hit = stage.play(out, settings, fault)
        assert hit.status == -signal.SIGKILL, (fault, hit)
        kills += 1
        if i % 4 == 3 and (again := stage.play(out, settings, Fault(KILLS[i % 3], 9), resume=True)).fired:
            assert again.status in (-signal.SIGKILL, 1), again  # 1: killed before it was a run, so nothing to resume
        after = go_on(stage, out, settings)
        assert after.status == 0, (fault, after)
        assert left(out) == expected, fault
    assert kills >= 6


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_disk_that_fails_is_a_named_error_and_loses_nothing(stage, folder, name):
    settings, offset = CONFIGURATIONS[name], list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    for i, at in enumerate(chosen(undisturbed.operations, 4, offset + 3)):
        error, forever, out = ERRORS[(i + offset) % 3], i % 2 == 0, fresh(folder)
        action = "short" if i % 5 == 4 else "fail"
        fault = Fault(action, at, error, forever and action == "fail")
        hit = stage.play(out, settings, fault)
        assert hit.fired, fault
        assert hit.status == 0 or (hit.status, hit.code) == (1, "E-DISK"), (fault, hit)
        after = go_on(stage, out, settings) if hit.status else hit
        assert after.status == 0, (fault, hit, after)
        assert left(out) == expected, (fault, hit)


@pytest.mark.parametrize("name", ["plain", "distributed"])
def test_a_kill_of_any_process_of_a_pool_leaves_no_trace(stage, folder, name):
    """The operation may be a worker's: then the worker dies, and the run ends with E-WORKER."""
    settings, offset = {**CONFIGURATIONS[name], **POOL}, list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    for i, at in enumerate(chosen(undisturbed.operations, 3, offset)):
        fault, out = Fault(KILLS[(i + offset) % 3], at), fresh(folder)
        hit = stage.play(out, settings, fault)
        assert hit.status == -signal.SIGKILL or (hit.status, hit.code) == (1, "E-WORKER"), (fault, hit)
        after = go_on(stage, out, settings)
        assert after.status == 0, (fault, after)
        assert left(out) == expected, fault


def waits(until: Callable[[], bool], patience_s: float = 60.0) -> bool:
    """Whether it comes true in time."""
    end_s = time.monotonic() + patience_s
    while not until() and time.monotonic() < end_s:
        time.sleep(0.005)
    return until()


@pytest.mark.parametrize("name", ["plain", "hidden"])
def test_a_worker_that_writes_late_changes_nothing(stage, folder, name):
    """It is stopped in the middle of its job, its parent is killed, the run goes on, and only then it wakes."""
    settings = {**CONFIGURATIONS[name], **POOL}
    undisturbed, expected = calm(stage, folder, name, settings)
    late = 0
    for at in chosen(undisturbed.operations, 24, 0):
        if at > undisturbed.operations // 2:
            break  # too near to the end for newer memory to be overwritten
        out = fresh(folder)
        parent = stage.begin(out, settings, Fault("stop", at))
        assert waits(lambda: stage.control().stopped != 0)
        stopped = stage.control().stopped
        os.kill(parent, signal.SIGKILL)
        if stopped == parent:
            stage.end()
            continue
        stage.end()
        stage.begin(out, settings, resume=True)
        waits(lambda: stage.control().count > undisturbed.operations // 2, 20.0)
        os.kill(stopped, signal.SIGCONT)
        after = stage.end()
        if after.code == "E-RESUME":
            after = stage.play(out, settings)
        assert after.status == 0, (at, after)
        assert left(out) == expected, at
        late += 1
    assert late
