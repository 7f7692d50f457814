"""A worker process. It reads jobs from standard input and writes results to standard output, until its input ends."""

from __future__ import annotations

import os
import sys

from edgewise.drivers.screen import guard_streams
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.host import Host


def main() -> None:
    """Serve jobs until the pipe closes. Output of libraries goes to standard error and never into the stream.

    An orphan ends after its current job, because ``--resume`` may have started another worker for the same device. The
    orphan's last writes never reach the folder of the new worker (``drivers.storage.device_store``).

    The argument is the number of this worker, from 0.
    """
    stream_in, stream_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    guard_streams()
    parent = os.getppid()

    def alive() -> bool:
        return os.getppid() == parent

    host = Host(worker=int(sys.argv[1]))
    while (job := jobs.read_job(stream_in)) is not None and alive():
        answer = host.do(job)
        if not alive():
            return
        if answer is not None:
            jobs.write(stream_out, answer)


if __name__ == "__main__":
    main()
