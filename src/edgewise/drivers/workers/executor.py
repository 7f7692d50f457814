"""Executors of jobs: in this process one after the other, or in worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from edgewise.core.errors import REGISTRY, EdgewiseError
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host


class Executor(Protocol):
    """A queue of jobs. Results may come in any order. ``id`` links a result to its job."""

    @property
    def parallel(self) -> int:
        """The number of jobs that run at the same time."""
        ...

    def broadcast(self, job: jobs.Job) -> list[jobs.Result]:
        """Do this job in every process that runs devices. Return the answers, if the job has any, in order."""
        ...

    def submit(self, job: jobs.Job) -> None:
        """Queue a job for any one process."""
        ...

    def result(self) -> jobs.Result:
        """Wait for any submitted job to finish.

        Raises:
            LookupError: where no job is in progress.
        """
        ...

    def cancel(self) -> None:
        """Forget jobs that have not begun, and drop the results of those in progress."""
        ...

    def close(self) -> None:
        """Release processes and files."""
        ...


class Inproc:
    """Run all jobs in this process. A job runs when its result is asked for."""

    parallel = 1

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._queue: deque[jobs.Job] = deque()

    def broadcast(self, job: jobs.Job) -> list[jobs.Result]:
        """See Executor."""
        answer = self._host.do(job)
        return [] if answer is None else [answer]

    def submit(self, job: jobs.Job) -> None:
        """See Executor."""
        self._queue.append(job)

    def result(self) -> jobs.Result:
        """See Executor."""
        if not self._queue:
            raise LookupError("no job under way")
        answer = self._host.do(self._queue.popleft())
        assert answer is not None
        return answer

    def cancel(self) -> None:
        """See Executor."""
        self._queue.clear()

    def close(self) -> None:
        """See Executor."""
        self._queue.clear()


def checked(results: Iterable[jobs.Result]) -> list[jobs.Result]:
    """Return the results, or raise the error of the first ``Broken`` among them."""
    out = list(results)
    for r in out:
        if isinstance(r, jobs.Broken):
            raise EdgewiseError(r.code if r.code in REGISTRY else "E-WORKER", r.what, r.fix)
    return out
