"""A fault at the Nth durable operation, for every N: the run leaves in the end what an undisturbed one leaves.

``make test`` walks a sample of the operations, ``make test-long`` all of them: a kill before each and in the middle of
each write, a disk that refuses each once and from each on, writes that take a part. It walks pools of workers too; most
of these workers are forked there, not started, which is what makes the walk affordable.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import kit
import pytest
from configurations import CONFIGURATIONS
from kit import KILLS, Fault, Image, Outcome, Stage, fresh, left
from long import LONG

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(bool(kit.available()), reason=kit.available()),
    pytest.mark.timeout(4 * 3600),
]

POOL: Mapping[str, Any] = {"simulation.engine": "pool", "simulation.workers": 2}
POOLED = ("plain", "downlink", "hidden", "distributed_dp")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
RESUMING = 48  # operations of a resume that are walked: opening, cleaning, and the rest of the round
PARTS = range(4 if LONG else 1)  # the pool's walk is shared out to several tests
SHOWN = 4  # failures after which a walk stops

Case = TypeVar("Case")
Play = Callable[[Case], str]


def sampled(operations: int, sample: int, offset: int) -> list[int]:
    """Numbers of about ``sample`` operations spread evenly, others for each ``offset``."""
    step = max(1, operations // sample)
    return list(range(1 + offset * 7 % step, operations + 1, step))


def kills(of: Outcome, sample: int, offset: int) -> list[Fault]:
    """Kills at operations spread evenly; before, in and after them in turn."""
    return [Fault(KILLS[(i + offset) % 3], at) for i, at in enumerate(sampled(of.operations, sample, offset))]


def all_kills(of: Outcome) -> list[Fault]:
    """Kills before each operation, in each write, and after the last one: all states that a kill can leave."""
    whole = [Fault("kill_before", at) for at in range(1, of.operations + 1)]
    return [*whole, *(Fault("kill_torn", at) for at in sorted(of.writes)), Fault("kill_after", of.operations)]


def begins(stage: Stage, folder: Path, settings: Mapping[str, Any]) -> int:
    """The first operation to walk: of a run with a report, which takes seconds, only those of the report."""
    if not settings.get("report"):
        return 1
    return stage.play(fresh(folder), {**settings, "report": False}).operations


def failures(of: Outcome, sample: int, offset: int, first: int = 1) -> list[Fault]:
    """The disk refuses an operation, or all from there on, or takes a part of a write, in turn."""
    found = []
    for i, at in enumerate(range(first, of.operations + 1) if LONG else sampled(of.operations, sample, offset)):
        kind = (i // 3 + offset) % 3
        action = "short" if kind == 2 and at in of.writes else "fail"
        found.append(Fault(action, at, ERRORS[i % 3], kind == 1))
    return found


def go_on(stage: Stage, out: Path, settings: Mapping[str, Any], forks: bool = False) -> Outcome:
    """Resume; or begin, where the run was killed before it was registered."""
    after = stage.play(out, settings, resume=True, forks=forks)
    if after.code == "E-RESUME" and "no run" in after.said:
        after = stage.play(out, settings, forks=forks)
    return after


def calm(stage: Stage, folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Outcome, dict[str, Any]]:
    """End and remains of the undisturbed run."""
    out = fresh(folder)
    outcome = stage.play(out, settings)
    assert outcome.status == 0, (name, outcome)
    found = left(out)
    assert found["memories"] or name not in ("plain", "hidden", "ef21")
    return outcome, found


def differences(out: Path, expected: Mapping[str, Any]) -> str:
    """Differences between what a finished run and the undisturbed one left. Empty where there are none."""
    try:
        found = left(out)
    except Exception as e:  # whatever it is, it is a finding
        return f"cannot be read: {e!r}"
    return "; ".join(f"{k}: {_unlike(found[k], v)}" for k, v in expected.items() if found[k] != v)


def _unlike(found: Any, expected: Any) -> str:
    """Say where two things differ: of two lists only what is not in the other one."""
    if isinstance(found, list) and isinstance(expected, list):
        more, less = [x for x in found if x not in expected], [x for x in expected if x not in found]
        found, expected = (more, less) if more or less else (found, expected)
    return f"{found!r:.300} instead of {expected!r:.300}"


def walk(faults: Iterable[Case], play: Play[Case], record_property: Callable[[str, object], None], name: str) -> int:
    """Play all faults; returns their number. ``play`` says what went wrong, or nothing."""
    began, trouble, number = time.monotonic(), [], 0
    for number, fault in enumerate(faults, 1):
        if said := play(fault):
            trouble.append(f"number {number}, {fault!r:.200}: {said}")
            print(trouble[-1], file=sys.__stderr__, flush=True)  # a walk takes long: with -s it is seen at once
        if len(trouble) >= SHOWN:
            break
    record_property("walk", [name, number, len(trouble), time.monotonic() - began])
    assert not trouble, "\n".join(trouble)
    return number


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_kill_at_a_durable_operation_leaves_no_trace(stage, folder, record_property, name):
    settings, offset = CONFIGURATIONS[name], list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)

    def play(fault: Fault) -> str:
        out = fresh(folder)
        hit = stage.play(out, settings, fault)
        if hit.status != -signal.SIGKILL:
            return f"was not killed: {hit}"
        if fault.at % 4 == 3:
            again = stage.play(out, settings, Fault(KILLS[fault.at % 3], 9), resume=True)
            if again.fired and again.status not in (-signal.SIGKILL, 1):  # 1: killed before it was a run
                return f"was not killed again: {again}"
        after = go_on(stage, out, settings)
        return f"{after}" if after.status else differences(out, expected)

    assert walk(kills(undisturbed, 6, offset), play, record_property, name) >= 6


def from_image(stage: Stage, folder: Path, settings: Mapping[str, Any], expected: Mapping[str, Any]) -> Play[Image]:
    """Go on from what a kill would have left."""

    def play(left_behind: Image) -> str:
        out = fresh(folder)
        left_behind.restore(out.parent)
        after = go_on(stage, out, settings)
        return f"{after}" if after.status else differences(out, expected)

    return play


@pytest.mark.parametrize("which", ["each state of its own", "states that SQLite reads alike"])
@pytest.mark.parametrize("name", CONFIGURATIONS if LONG else ["plain"])
def test_a_kill_before_any_durable_operation_and_in_any_write_leaves_no_trace(
    stage, folder, record_property, name, which
):
    """The state of the disk at each of them is what a killed process leaves: all goes on from there."""
    settings = CONFIGURATIONS[name]
    undisturbed, expected = calm(stage, folder, name, settings)
    first = begins(stage, folder, settings)
    images, walked = stage.images(fresh(folder), settings, first=first), undisturbed.operations - first + 1
    assert walked // 2 < len(images) <= 2 * walked + 1
    states = {image.state(fresh(folder).parent): image for image in images}
    own = {id(image) for image in states.values()}
    assert len(own) > (1 if settings.get("report") else walked // 4)  # A report is made in a few steps, by renames.
    chosen = [image for image in images if (id(image) in own) is (which == "each state of its own")]
    some = chosen if LONG else chosen[5::100]
    assert walk(some, from_image(stage, folder, settings, expected), record_property, name) == len(some)


@pytest.mark.parametrize("name", CONFIGURATIONS if LONG else ["downlink"])
def test_a_kill_of_a_run_that_goes_on_leaves_no_trace(stage, folder, record_property, name):
    """Killed in the middle of a round, and again at any of the first operations after it was resumed."""
    settings, offset = CONFIGURATIONS[name], list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    writes, out = sorted(undisturbed.writes), fresh(folder)
    assert stage.play(out, settings, Fault("kill_torn", writes[len(writes) * 3 // 5 + offset])).status < 0
    images = stage.images(out, settings, resume=True, last=RESUMING)
    some = images if LONG else images[3::20]
    assert walk(some, from_image(stage, folder, settings, expected), record_property, name) == len(some)


def test_what_is_shown_is_what_a_kill_leaves(stage, folder):
    """Names and sizes; the bytes have a clock and random names in them."""
    settings = CONFIGURATIONS["plain"]
    undisturbed, _ = calm(stage, folder, "plain", settings)
    shown = {_shape(image) for image in stage.images(fresh(folder), settings)}
    for i, at in enumerate(sampled(undisturbed.operations, 9, 2)):
        out = fresh(folder)
        assert stage.play(out, settings, Fault(KILLS[i % 3], at)).status == -signal.SIGKILL
        assert _shape(kit.image(out.parent)) in shown


def _shape(image: Image) -> tuple[tuple[str, int, int], ...]:
    return tuple(
        (re.sub(r"-[0-9a-f]{8}|\.\d+\.tmp$", "", name), mode, len(raw or "")) for name, mode, raw in image.entries
    )


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_disk_that_fails_is_a_named_error_and_loses_nothing(stage, folder, record_property, name):
    settings, offset = CONFIGURATIONS[name], list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)

    def play(fault: Fault) -> str:
        out = fresh(folder)
        hit = stage.play(out, settings, fault)
        if not hit.fired and hit.operations >= fault.at:  # The number of operations varies by one or two.
            return f"was not played: {hit}"
        if hit.status and (hit.status, hit.code) != (1, "E-DISK"):
            return f"{hit}"
        after = go_on(stage, out, settings) if hit.status else hit
        return f"{hit}, then {after}" if after.status else differences(out, expected)

    faults = failures(undisturbed, 4, offset + 3, begins(stage, folder, settings))
    assert walk(faults, play, record_property, name) == len(faults)


def shared_out(faults: list[Fault], part: int) -> Iterator[tuple[Fault, bool]]:
    """Every so-many-th fault, and whether its workers are forked: in ``make test`` never, else mostly."""
    for i, fault in enumerate(islice(faults, part, None, len(PARTS))):
        yield fault, LONG and i % 100 != 50


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", POOLED if LONG else POOLED[::3])
def test_a_kill_of_any_process_of_a_pool_leaves_no_trace(stage, folder, record_property, name, part):
    """The operation may be a worker's: then the worker dies, and the run ends with E-WORKER."""
    settings, offset = {**CONFIGURATIONS[name], **POOL}, list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    faults = all_kills(undisturbed) if LONG else kills(undisturbed, 3, offset)
    chosen = dict(shared_out(faults, part))

    def play(fault: Fault) -> str:
        out, forks = fresh(folder), chosen[fault]
        hit = stage.play(out, settings, fault, forks=forks)
        if hit.status != -signal.SIGKILL and (hit.status, hit.code) != (1, "E-WORKER"):
            return f"was not killed: {hit}"
        after = go_on(stage, out, settings, forks)
        return f"{hit}, then {after}" if after.status else differences(out, expected)

    assert walk(chosen, play, record_property, f"{name}, pool") >= (undisturbed.operations // 4 if LONG else 3)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", POOLED if LONG else POOLED[1:2])
def test_a_disk_that_fails_a_pool_is_a_named_error_and_loses_nothing(stage, folder, record_property, name, part):
    settings, offset = {**CONFIGURATIONS[name], **POOL}, list(CONFIGURATIONS).index(name)
    undisturbed, expected = calm(stage, folder, name, settings)
    chosen = dict(shared_out(failures(undisturbed, 2, offset), part))

    def play(fault: Fault) -> str:
        out, forks = fresh(folder), chosen[fault]
        hit = stage.play(out, settings, fault, forks=forks)
        if hit.status and (hit.status, hit.code) != (1, "E-DISK"):
            return f"{hit}"
        after = go_on(stage, out, settings, forks) if hit.status else hit
        return f"{hit}, then {after}" if after.status else differences(out, expected)

    assert walk(chosen, play, record_property, f"{name}, pool") >= (undisturbed.operations // 4 if LONG else 2)


def waits(until: Callable[[], bool], patience_s: float = 60.0) -> bool:
    """Tell whether a condition comes true in time."""
    end_s = time.monotonic() + patience_s
    while not until() and time.monotonic() < end_s:
        time.sleep(0.005)
    return until()


@pytest.mark.parametrize("name", ["plain", "hidden"])
def test_a_worker_that_writes_late_changes_nothing(stage, folder, record_property, name):
    """It is stopped in the middle of its job, its parent is killed, the run goes on, and only then it wakes."""
    settings = {**CONFIGURATIONS[name], **POOL}
    undisturbed, expected = calm(stage, folder, name, settings)
    forked = stage.play(fresh(folder), settings, forks=True)
    assert forked.status == 0, forked  # workers that cannot be forked would never meet a fault
    late = 0

    def play(fault: Fault) -> str:
        nonlocal late
        out = fresh(folder)
        parent = stage.begin(out, settings, fault, forks=True)
        assert waits(lambda: stage.control().stopped != 0)
        stopped = stage.control().stopped
        os.kill(parent, signal.SIGKILL)
        stage.end()
        if stopped == parent:
            return ""
        resumed = stage.begin(out, settings, resume=True, forks=True)
        ended = Path(f"/proc/{resumed}")  # gone once the stage has waited for it
        waits(lambda: stage.control().count > undisturbed.operations // 2 or not ended.exists(), 20.0)
        os.kill(stopped, signal.SIGCONT)
        after = stage.end()
        if after.code == "E-RESUME":
            after = stage.play(out, settings, forks=True)
        late += 1
        return f"{after}" if after.status else differences(out, expected)

    # later ones are too near to the end for newer memory to be overwritten
    half = undisturbed.operations // 2
    every = range(1, half + 1) if LONG else [at for at in sampled(2 * half, 12, 0) if at <= half]
    walk([Fault("stop", at) for at in every], play, record_property, f"{name}, late")
    # Which process meets an operation depends on timing: where all of these were the parent's, look at the others too.
    for at in sorted(set(range(1, half + 1)).difference(every)):
        if late:
            break
        walk([Fault("stop", at)], play, record_property, f"{name}, late")
    assert late
