"""Workers on a Ray cluster: an executor as ``drivers.workers.pool``, with other places for the same jobs.

    pool = RayPool(recipe.simulation)
    pool.broadcast(setup)                    # as every ``Executor``

Each worker is a Ray actor around a ``CarryingHost``. What all workers need is put into Ray's object store once, and a
worker takes what it lacks before its next job. The states of devices stay with this process, in the run directory: a
job carries those of its devices, and the answer brings them back. So a worker that dies has nothing that is lost. It
is replaced, and another one does its job again, to the same bytes.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.vector import Spec
from edgewise.drivers.storage.device_store import FolderFiles, state_names
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.carrying_host import CarryingHost
from edgewise.drivers.workers.ray_cluster import connect, ray_module
from edgewise.drivers.workers.shared_jobs import SharedJobs
from edgewise.plan.acceptance import planned
from edgewise.plan.facts import parse
from edgewise.plan.objects import catalogue
from edgewise.plan.recipe.sections import SimulationSection

LOG = logging.getLogger("edgewise")
PLACE_S = 600.0  # longest wait for a place on the cluster
LOOK_S = 1.0  # interval of looking whether the run has ended meanwhile
TRIES = 3  # number of workers that may end in the same job
CLOSE_S = 5.0


@dataclass(frozen=True)
class _Sync:
    """An order to answer the shared job at ``place``."""

    place: int


@dataclass
class _ClusterWorker:
    actor: Any
    done: int = 0  # place of the last shared job that it has done
    answers: dict[int, jobs.Result] = field(default_factory=dict)


class RayPool:
    """An executor over the workers of a Ray cluster, each with one job in progress, in a thread of its own here.

    Attributes:
        peak_bytes: the largest memory of a worker so far. None where no system tells it.

    Raises:
        EdgewiseError: E-DEPENDENCY without ray. E-CLUSTER where no cluster answers, or where it is too small.
    """

    def __init__(self, section: SimulationSection) -> None:
        self._section = section
        self._disconnect = connect(section)
        self._ray = ray_module()
        self.peak_bytes: int | None = None
        self._done: queue.SimpleQueue[tuple[int, jobs.Result | BaseException]] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards everything below
        self._closing = False
        self._queue: deque[jobs.Job] = deque()
        self._own: list[deque[jobs.Job | _Sync]] = [deque() for _ in range(section.workers)]
        self._shared = SharedJobs(lambda job: self._ray.put(jobs.encode(jobs.CarriedJob(job))))
        self._deaths = Counter[int]()  # by the identity of a job that is queued again
        self._notes: list[tuple[str, int | None, str, str, float]] = []
        self._first: dict[int, jobs.Result] = {}
        self._pending = 0  # submitted and not yet returned by result()
        self._setup: jobs.Setup | None = None
        self._files = FolderFiles(Path())
        self._limit_bytes = 0
        self._workers: list[_ClusterWorker | None] = [None] * section.workers
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(section.workers)]
        for thread in self._threads:
            thread.start()

    @property
    def parallel(self) -> int:
        """See Executor."""
        return self._section.workers

    def broadcast(self, job: jobs.Job) -> list[jobs.Result]:
        """See Executor. No submitted job may be in progress."""
        if self._pending:
            raise RuntimeError("broadcast while jobs are under way")
        with self._changed:
            if isinstance(job, jobs.TakeMetrics):
                notes, self._notes = self._notes, []
                return [jobs.MetricNotes(id=job.id, notes=notes)]
            order: jobs.Job | _Sync = job
            if isinstance(job, jobs.Setup | jobs.Compile | jobs.SILENT):
                if isinstance(job, jobs.Setup):
                    self._setup, self._files = job, FolderFiles(Path(job.memory_dir))
                order = _Sync(self._shared.add(job))
                if isinstance(job, jobs.SILENT):
                    return []
            for own in self._own:
                own.append(order)
            self._changed.notify_all()
        found = dict(self._next() for _ in self._own)
        answers = [found[i] for i in sorted(found)]
        if isinstance(order, _Sync):
            self._first[order.place] = answers[0]
        if isinstance(job, jobs.Compile) and isinstance(answers[0], jobs.Ready):
            self._read_plan(job)
        return answers

    def submit(self, job: jobs.Job) -> None:
        """See Executor."""
        self._pending += 1
        with self._changed:
            for one in _handles(job):
                self._shared.invited(one.frame, self._limit_bytes)
            self._queue.append(job)
            self._changed.notify()

    def result(self) -> jobs.Result:
        """See Executor."""
        if not self._pending:
            raise LookupError("no job under way")
        _, answer = self._next()
        self._pending -= 1
        return answer

    def cancel(self) -> None:
        """See Executor. Waits for jobs in progress, so that the next broadcast finds idle workers."""
        with self._changed:
            self._pending -= len(self._queue)
            self._queue.clear()
        while self._pending:
            self.result()

    def close(self) -> None:
        """See Executor. Jobs in progress are given up. A cluster that this run has started ends."""
        with self._changed:
            self._closing = True
            self._queue.clear()
            self._changed.notify_all()
        for worker in self._workers:
            if worker is not None:
                self._kill(worker)
        for thread in self._threads:
            thread.join(CLOSE_S)
        self._disconnect()

    def _read_plan(self, job: jobs.Compile) -> None:
        """Read off the plan what a new worker needs to follow the broadcast."""
        described = next(answer for answer in self._first.values() if isinstance(answer, jobs.Described))
        assert self._setup is not None
        spec = Spec.of([(name, shape, dtype) for name, shape, dtype in described.spec])
        plan = planned(parse(job.facts), spec, catalogue(self._setup.extensions))
        self._limit_bytes, self._shared.pipe = plan.frame_limit_bytes, plan.downlink

    def _next(self) -> tuple[int, jobs.Result]:
        index, answer = self._done.get()
        if isinstance(answer, BaseException):
            raise answer
        return index, answer

    def _serve(self, index: int) -> None:
        """Keep worker ``index`` busy, and replace it where it dies. Ends with the run."""
        try:
            while True:
                worker = self._ready(index)
                if worker is None or (taken := self._take(index)) is None:
                    return
                order, own = taken
                try:
                    answer = self._perform(worker, order)
                except self._ray.exceptions.RayActorError as e:
                    self._put_back(index, order, own, e)
                else:
                    self._done.put((index, answer))
        except EdgewiseError as e:
            self._done.put((index, e))
        except BaseException as e:  # boundary: the main thread raises it
            if not self._closing:
                LOG.warning("worker %d of the cluster failed", index, exc_info=e)
                what = f"worker {index} of the cluster failed ({type(e).__name__})."
                self._done.put((index, StoreError("E-WORKER", what, "see the log, then continue with --resume.")))

    def _take(self, index: int) -> tuple[jobs.Job | _Sync, bool] | None:
        """Wait for the next job of worker ``index``, and tell whether it is for this one. None at the run's end."""
        with self._changed:
            while not self._closing:
                if self._own[index]:
                    return self._own[index].popleft(), True
                if self._queue:
                    return self._queue.popleft(), False
                self._changed.wait()
        return None

    def _perform(self, worker: _ClusterWorker, order: jobs.Job | _Sync) -> jobs.Result:
        """Do one order. Raises RayActorError where the worker dies."""
        self._catch_up(worker)
        if isinstance(order, _Sync):
            return worker.answers[order.place]
        names = [name for device in _devices(order) for name in state_names(device)]
        files = {name: raw for name in names if (raw := self._files.read(name)) is not None}
        done = self._ask(worker, jobs.encode(jobs.CarriedJob(order, files)))
        for name, raw in done.changes.items():
            if name not in names:
                raise StoreError("E-WORKER", f"a worker changed {name!r:.80}, which its job did not carry.")
            if raw is None:
                self._files.discard(name)
            else:
                self._files.write(name, raw)
        with self._changed:
            del self._deaths[id(order)]  # another job may have this identity later
            self._notes += done.notes
            if done.peak_bytes is not None:
                self.peak_bytes = max(done.peak_bytes, self.peak_bytes or 0)
        assert done.result is not None
        return done.result

    def _ask(self, worker: _ClusterWorker, raw: Any) -> jobs.CarriedAnswer:
        """Give a task to a worker, and wait for its answer."""
        return jobs.read_done(self._ray.get(worker.actor.do.remote(raw)))

    def _catch_up(self, worker: _ClusterWorker) -> None:
        """Give a worker the shared jobs that it lacks."""
        with self._changed:
            lacking = self._shared.since(worker.done)
        for one in lacking:
            done = self._ask(worker, one.stored)
            if done.result is not None:
                self._check_same(one.place, done.result)
                worker.answers[one.place] = done.result
            worker.done = one.place

    def _check_same(self, place: int, answer: jobs.Result) -> None:
        """Refuse a replacement that has another model or other data than the workers before it."""
        first = self._first.get(place)
        if first is None or not isinstance(first, jobs.Described):
            return
        if isinstance(answer, jobs.Broken):
            raise StoreError(answer.code, answer.what, answer.fix)
        assert isinstance(answer, jobs.Described)
        if (answer.spec, answer.devices, answer.initial, _arithmetic(answer)) != (
            first.spec, first.devices, first.initial, _arithmetic(first),
        ):  # fmt: skip
            what = "a new worker has another model, other data or another arithmetic than the one that it replaces."
            raise StoreError("E-WORKER", what, "continue with --resume on machines that are alike.")

    def _ready(self, index: int) -> _ClusterWorker | None:
        """Return worker ``index``, in a new place where it died. None at the end of the run.

        Raises:
            StoreError: E-WORKER where workers die while they load, or where no place becomes free.
        """
        reason = ""
        for _ in range(TRIES):
            if self._closing:
                return None
            if (worker := self._workers[index]) is not None:
                return worker
            worker = _ClusterWorker(self._actor(index))
            try:
                if not self._is_placed(worker):
                    return None
                self._catch_up(worker)
            except self._ray.exceptions.RayActorError as e:
                LOG.warning("worker %d of the cluster ended while it loaded", index, exc_info=e)
                reason = _last_line(e)
                self._kill(worker)
                continue
            self._workers[index] = worker
        if (worker := self._workers[index]) is not None:
            return worker
        what = f"{TRIES} workers of the cluster ended while they loaded: {reason}"
        raise StoreError("E-WORKER", what, "see that edgewise is installed on all machines, and that memory suffices.")

    def _actor(self, index: int) -> Any:
        """Ask Ray for a worker. Ray finds a place for it in its own time."""
        # Workers must import the same modules as this process (extensions next to the recipe, a source checkout).
        path = os.pathsep.join(dict.fromkeys(p or os.getcwd() for p in sys.path))
        variables = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        variables |= {"TOKENIZERS_PARALLELISM": "false"}
        options = {"num_cpus": self._section.worker_cpus, "num_gpus": self._section.worker_gpus, "max_restarts": 0}
        made = self._ray.remote(CarryingHost).options(
            **options, runtime_env={"env_vars": variables}, scheduling_strategy="SPREAD"
        )
        return made.remote(index)

    def _is_placed(self, worker: _ClusterWorker) -> bool:
        """Wait until a worker runs. False at the end of the run."""
        waiting, waited_s = [worker.actor.pid.remote()], 0.0
        while not self._closing:
            ready, waiting = self._ray.wait(waiting, timeout=LOOK_S)
            if ready:
                self._ray.get(ready[0])
                return True
            if (waited_s := waited_s + LOOK_S) > PLACE_S:
                self._kill(worker)
                what = f"the cluster had no place for a worker in {PLACE_S:.0f} s. Others may use it."
                raise StoreError("E-WORKER", what, "wait for them or ask for fewer workers, then go on with --resume.")
        return False

    def _put_back(self, index: int, order: jobs.Job | _Sync, own: bool, e: Exception) -> None:
        """Queue the job of a worker that has died. Raises StoreError(E-WORKER) where several died in the same job."""
        LOG.warning("worker %d of the cluster ended and is replaced", index, exc_info=e)
        with self._changed:
            self._workers[index] = None
            self._deaths[id(order)] += 1
            if self._deaths[id(order)] >= TRIES:
                what = f"{TRIES} workers of the cluster ended in the same job: {_last_line(e)}"
                fix = "continue with --resume, and with fewer workers on a machine if memory is short."
                raise StoreError("E-WORKER", what, fix)
            if own or isinstance(order, _Sync):
                self._own[index].appendleft(order)
            else:
                self._queue.appendleft(order)
            self._changed.notify()

    def _kill(self, worker: _ClusterWorker) -> None:
        """End a worker, if it still runs."""
        with suppress(Exception):  # boundary: the cluster may be gone
            self._ray.kill(worker.actor)


def _handles(job: jobs.Job) -> tuple[jobs.Handle, ...]:
    """List the frames of a job."""
    return (job,) if isinstance(job, jobs.Handle) else job.items if isinstance(job, jobs.HandleMany) else ()


def _devices(job: jobs.Job) -> list[str]:
    """List the devices whose states a job may need."""
    return [job.device] if isinstance(job, jobs.Personalise) else [one.device for one in _handles(job)]


def _arithmetic(described: jobs.Described) -> object:
    """Return the digest of a worker's arithmetic."""
    return described.facts.get("arithmetic_sha256")


def _last_line(e: Exception) -> str:
    """Return the last line of an error's message."""
    return f"{(str(e).strip().splitlines() or [type(e).__name__])[-1].strip():.200}"
