"""Where jobs run: in this process one after the other, or in worker processes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from edgewise.core.errors import REGISTRY, EdgewiseError
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host


class Executor(Protocol):
    """A queue of jobs. Results may come in any order; ``id`` links them."""

    @property
    def parallel(self) -> int:
        """How many jobs run at the same time."""
        ...

    def broadcast(self, job: jobs.Job) -> list[jobs.Result]:
        """Do this job in every place where devices run; answers (if the job has one) in order."""
        ...

    def submit(self, job: jobs.Job) -> None:
        """Queue a job for any one place."""
        ...

    def result(self) -> jobs.Result:
        """Wait for any submitted job to finish. Raises LookupError when none is under way."""
        ...

    def cancel(self) -> None:
        """Forget jobs that have not begun; results of those under way will not be returned."""
        ...

    def close(self) -> None:
        """Release processes and files."""
        ...


class Inproc:
    """Everything in this process; a job runs when its result is asked for."""

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
    """The results, or the first ``Broken`` among them raised as the error that it carries."""
    out = list(results)
    for r in out:
        if isinstance(r, jobs.Broken):
            raise EdgewiseError(r.code if r.code in REGISTRY else "E-WORKER", r.what, r.fix)
    return out
