"""A pool of worker processes with one torch thread each. Jobs travel over pipes, length-prefixed and never pickled.

Workers are plain ``python -m edgewise.drivers.workers.worker`` processes. No process that holds torch is forked, and
workers inherit nothing but two pipes. The end of the pipe ends the worker, so a killed parent leaves none behind.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from edgewise.core.errors import DecodeError, StoreError
from edgewise.drivers.workers import jobs

CLOSE_S = 2.0
LOOK_S, STOPPED_S = 30.0, 300.0  # interval of looking at silent workers; longest time that a worker may be stopped


# With Linux's default of 64 KiB, every 64 KiB cost a context switch: 12.5 ms for 4 MB there and back, against 3.5 ms.
PIPE_BYTES = 2**20


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    stdin: BinaryIO
    stdout: BinaryIO
    idle: bool = True


class Pool:
    """An executor over ``workers`` processes, each with one job in progress.

    A worker that finishes gets the next job from its listener thread at once, also while the main thread merges
    updates.
    """

    def __init__(self, workers: int) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        # Workers must import the same modules as this process (extensions next to the recipe, a source checkout).
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p or os.getcwd() for p in sys.path))
        self._done: queue.SimpleQueue[tuple[int, jobs.Result | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _queue and every worker's idle flag
        self._queue: deque[jobs.Job] = deque()
        self._pending = 0  # submitted and not yet returned by result()
        self._workers: list[_Worker] = []
        self._closing, self._were_stopped = threading.Event(), set[int]()
        try:
            for index in range(workers):
                self._workers.append(self._start(index, env))
        except OSError as e:
            self.close()
            what = f"cannot start worker process {len(self._workers)} of {workers}: {e.strerror}."
            raise StoreError("E-WORKER", what, "ask for fewer workers.") from None
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def parallel(self) -> int:
        """See Executor."""
        return len(self._workers)

    def _start(self, index: int, env: dict[str, str]) -> _Worker:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "edgewise.drivers.workers.worker",
                str(index),
            ],  # -P: Python does not search the current folder first
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=PIPE_BYTES,
            env=env,
            start_new_session=True,  # Ctrl-C reaches the parent only; workers end when their pipe ends
        )
        assert process.stdin is not None
        assert process.stdout is not None
        worker = _Worker(process, process.stdin, process.stdout)  # type: ignore[arg-type]
        threading.Thread(target=self._listen, args=(index, worker), daemon=True).start()
        return worker

    def _listen(self, index: int, worker: _Worker) -> None:
        """Move a worker's answers into the common queue, in a thread of its own. None marks the worker's end."""
        try:
            while (answer := jobs.read_result(worker.stdout)) is not None:
                with self._lock:
                    worker.idle = True
                    self._feed()
                self._done.put((index, answer))
        except (DecodeError, OSError, ValueError):
            pass  # a broken stream is reported as the worker's end just below
        self._done.put((index, None))

    def _feed(self) -> None:
        """Give queued jobs to idle workers; the caller holds the lock."""
        for worker in self._workers:
            if worker.idle and self._queue:
                worker.idle = False
                with suppress(OSError):  # the listener of a dead worker reports it, and result() raises the error
                    jobs.write(worker.stdin, self._queue.popleft())

    def _watch(self) -> None:
        """End workers that stay stopped by a signal (SIGSTOP).

        Otherwise the pool would wait without end for their answers, and for writes to them once their pipes are full.
        """
        since_s: dict[int, float] = {}
        while not self._closing.wait(LOOK_S):
            now_s = time.monotonic()
            since_s = {i: since_s.get(i, now_s) for i, w in enumerate(self._workers) if _is_stopped(w.process.pid)}
            for i in (i for i, began_s in since_s.items() if now_s - began_s >= STOPPED_S):
                self._were_stopped.add(i)
                self._workers[i].process.kill()

    def _ended(self, index: int) -> StoreError:
        if index in self._were_stopped:
            what = f"worker process {index} (process id {self._workers[index].process.pid}) was stopped and stayed so."
            fix = "continue with --resume, and let the processes run. The run is saved up to here."
            return StoreError("E-WORKER", what, fix)
        try:
            code: int | str = self._workers[index].process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = "none: it still runs"
        return StoreError(
            "E-WORKER",
            f"worker process {index} ended unexpectedly (exit status {code}; -9 is often: out of memory).",
            "continue with --resume, and with fewer workers if memory is short. The run is saved up to here.",
        )

    def _next(self) -> tuple[int, jobs.Result]:
        index, answer = self._done.get()
        if answer is None:
            raise self._ended(index)
        return index, answer

    def broadcast(self, job: jobs.Job) -> list[jobs.Result]:
        """See Executor. No submitted job may be in progress."""
        if self._pending:
            raise RuntimeError("broadcast while jobs are under way")
        for index, worker in enumerate(self._workers):
            try:
                jobs.write(worker.stdin, job)
            except OSError:
                raise self._ended(index) from None
        if isinstance(job, jobs.SILENT):
            return []
        answers = dict(self._next() for _ in self._workers)
        return [answers[i] for i in sorted(answers)]

    def submit(self, job: jobs.Job) -> None:
        """See Executor."""
        self._pending += 1
        with self._lock:
            self._queue.append(job)
            self._feed()

    def result(self) -> jobs.Result:
        """See Executor."""
        if not self._pending:
            raise LookupError("no job under way")
        _, answer = self._next()
        self._pending -= 1
        return answer

    def cancel(self) -> None:
        """See Executor. Waits for jobs in progress, so that the next broadcast finds idle workers."""
        with self._lock:
            self._pending -= len(self._queue)
            self._queue.clear()
        while self._pending:
            self.result()

    def close(self) -> None:
        """See Executor. All workers together have two seconds to finish their jobs."""
        with self._lock:
            self._queue.clear()
        self._closing.set()
        until_s = time.monotonic() + CLOSE_S
        for worker in self._workers:
            with suppress(OSError):  # the worker may be gone already
                worker.stdin.close()
        for worker in self._workers:
            try:
                worker.process.wait(timeout=max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.stdout.close()


def _is_stopped(pid: int) -> bool:
    """Return whether a signal has stopped a child process; False where the system does not tell."""
    if not hasattr(os, "waitid"):
        return False
    with suppress(OSError):  # it ended and was waited for
        return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False
