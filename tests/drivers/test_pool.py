"""Worker processes: what they import, how their end is told, and how long closing takes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest
import toy
from toy_recipe import make_recipe

from edgewise.core import vector
from edgewise.core.errors import StoreError
from edgewise.drivers.workers import jobs, pool
from edgewise.drivers.workers.executor import checked
from edgewise.drivers.workers.pool import Pool
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.facts import canonical

pytestmark = pytest.mark.slow


def ready(run_dir, workers):
    """A pool whose workers have their plan; the initial model."""
    made = Pool(workers)
    recipe = make_recipe()
    facts = canonical(compile(recipe, toy.ToyTrainer(recipe).spec, 8, with_extensions(["toy"])).facts)
    setup = jobs.Setup(
        recipe=json.dumps(recipe.resolved()),
        recipe_dir=".",
        run_dir=str(run_dir),
        memory_dir="",
        instance="",
        extensions=("toy",),
    )
    try:
        initial = checked(made.broadcast(setup))[0].initial
        checked(made.broadcast(jobs.Compile(facts=facts)))
    except BaseException:
        made.close()
        raise
    return made, initial


def solo(number, initial):
    return jobs.Solo(id=number, device=f"d{number:05d}", params=initial, rounds=(0,), measure=True)


def test_a_module_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is not numpy')")
    monkeypatch.chdir(tmp_path)
    made, initial = ready(tmp_path, 1)
    made.submit(solo(1, initial))
    assert made.result().tokens == 100
    made.close()


def test_each_worker_knows_its_number(tmp_path, monkeypatch):
    """It decides the GPU of a worker where there are several."""
    source = "import sys\nfrom toy import EDGEWISE, ToyTrainer\nToyTrainer.devices = lambda self: [sys.argv[1]]\n"
    (tmp_path / "numbered.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Pool(2)
    setup = jobs.Setup(
        recipe=json.dumps(make_recipe().resolved()),
        recipe_dir=".",
        run_dir=str(tmp_path),
        memory_dir="",
        instance="",
        extensions=("numbered",),
    )
    assert [answer.devices for answer in checked(made.broadcast(setup))] == [["0"], ["1"]]
    made.close()


def test_extensions_of_the_parent_are_found(tmp_path, monkeypatch):
    (tmp_path / "beside.py").write_text("from toy import EDGEWISE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = Pool(1)
    setup = jobs.Setup(
        recipe=json.dumps(make_recipe().resolved()),
        recipe_dir=".",
        run_dir=str(tmp_path),
        memory_dir="",
        instance="",
        extensions=("beside",),
    )
    assert len(checked(made.broadcast(setup))[0].devices) == 8
    made.close()


def test_the_end_of_a_worker_has_its_status(tmp_path):
    made, initial = ready(tmp_path, 1)
    os.kill(made._workers[0].process.pid, signal.SIGKILL)
    made.submit(solo(1, initial))
    with pytest.raises(StoreError, match=r"E-WORKER.*worker process 0.*status -9;"):
        made.result()
    made.close()


def test_a_dead_worker_is_not_blamed_on_the_one_that_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "0.5")
    made, initial = ready(tmp_path, 2)
    os.kill(made._workers[1].process.pid, signal.SIGKILL)
    assert made._done.get(timeout=10) == (1, None)
    made._workers[1].idle = False
    for number in (1, 2, 3):
        made.submit(solo(number, initial))
    made._workers[1].idle = True  # so the listener of worker 0 feeds both: 2 to itself, 3 into a broken pipe
    assert [made.result().id, made.result().id] == [1, 2]
    made.close()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="the system does not tell who is stopped")
def test_a_worker_that_stays_stopped_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "LOOK_S", 0.05)
    monkeypatch.setattr(pool, "STOPPED_S", 60.0)
    made, initial = ready(tmp_path, 1)
    pid = made._workers[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    made.submit(solo(1, initial))
    threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()
    assert made.result().tokens == 100  # it was stopped for a while only
    monkeypatch.setattr(pool, "STOPPED_S", 0.2)
    os.kill(pid, signal.SIGSTOP)
    blob = jobs.Blob(digest="x", data=memoryview(bytes(2**25)), keep=("x",))  # more than its pipe has room for
    with pytest.raises(StoreError, match=rf"E-WORKER.*process id {pid}\) was stopped"):
        made.broadcast(blob)
    made.close()
    assert made._workers[0].process.returncode == -signal.SIGKILL


def test_closing_gives_all_workers_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "60")
    monkeypatch.setattr(pool, "CLOSE_S", 1.0)
    made, initial = ready(tmp_path, 3)
    for number in (1, 2, 3):
        made.submit(solo(number, initial))
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 2.5
    assert all(w.process.returncode is not None for w in made._workers)
    assert vector.digest(initial)


def test_a_worker_that_is_just_ending_is_waited_for():
    """Its pipe closes a moment before its status is there."""

    class Ending:
        returncode, pid = None, os.getpid()

        def poll(self):
            return None

        def wait(self, timeout):
            return -9

    made = Pool(0)
    made._workers.append(pool._Worker(Ending(), None, None))
    assert "exit status -9;" in made._ended(0).what
