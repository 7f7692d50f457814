"""Workers of a pool that are forked instead of started: the same program in processes of its own, without its imports.

``fork`` makes them before the pool asks for them, while the process has one thread. The pool gets them where it would
start one: a process with two pipes that serves jobs, that the parent's end or a signal ends, and that is waited for.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, BinaryIO

from edgewise.drivers.workers import pool, worker

PATIENCE_S = 240  # a worker that is older hangs: its run was given up before


class Forked:
    """Stand-in for ``subprocess.Popen``, with the part that the pool uses."""

    def __init__(self, pid: int, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self._status: int | None = None

    def poll(self) -> int | None:
        """Exit status, minus the number of the signal that ended it; None while it runs."""
        if self._status is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        end_s = time.monotonic() + (timeout if timeout is not None else PATIENCE_S)
        while (status := self.poll()) is None:
            if time.monotonic() >= end_s:
                raise subprocess.TimeoutExpired("worker", timeout or PATIENCE_S)
            time.sleep(0.001)
        return status

    def kill(self) -> None:
        """SIGKILL."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def fork(number: int, *foreign: int) -> None:
    """Fork workers and let the pool take them. ``foreign``: file descriptors that they must not keep open."""
    ready: deque[Forked] = deque()
    for index in range(number):  # the pool numbers its workers in the order in which it starts them
        jobs, answers = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            for fd in (*foreign, jobs[1], answers[0], *(s.fileno() for w in ready for s in (w.stdin, w.stdout))):
                os.close(fd)
            _serve(index, jobs[0], answers[1])
        os.close(jobs[0])
        os.close(answers[1])
        ready.append(Forked(pid, os.fdopen(jobs[1], "wb"), os.fdopen(answers[0], "rb")))

    def take(*_: Any, **__: Any) -> Forked:
        return ready.popleft()

    standins: Any = SimpleNamespace(Popen=take, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    pool.subprocess = standins


def _serve(index: int, jobs: int, answers: int) -> None:
    """Be the worker of a number, and end."""
    sys.argv = [worker.__file__, str(index)]  # as the pool starts one
    os.setsid()
    signal.alarm(PATIENCE_S)
    os.dup2(jobs, 0)
    os.dup2(answers, 1)
    os.close(jobs)
    os.close(answers)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (open as long as the process)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    try:
        worker.main()
    except BaseException:  # as an interpreter would end
        os._exit(1)
    os._exit(0)
