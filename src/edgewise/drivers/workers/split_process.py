"""A server's process with the rests of split models (``split_child``), as the server sees it. It imports no torch.

    rests = SplitProcess(Listen(...), revoked)
    rests.hold(HoldRest(...)); rests.open_round(run, 0)
    rests.end_round(run)                       # the sessions of the round
    rests.close()

The process starts with the first run that needs it. Where it ends, it is started again within a second and gets all
rests and open rounds anew. Devices connect again by themselves.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import msgspec

from edgewise.core.errors import DecodeError, EdgewiseError, StoreError
from edgewise.drivers.workers import split_jobs as jobs

LOG = logging.getLogger("edgewise")
LOOK_S = 0.5  # interval of looking at the process, and at who is revoked
CLOSE_S = 5.0
STARTS = 3  # starts for one message; a process that dies that often has no memory for the model, or is broken


class SplitProcess:
    """The process, and what it holds. Safe to use from several threads.

    Args:
        listen: where it listens for devices.
        revoked: returns the names of all revoked members. It is asked twice a second.
    Raises:
        StoreError: E-WORKER where the process ends again and again.
        EdgewiseError: the error that a message met in the process.
    """

    def __init__(self, listen: jobs.ListenJob, revoked: Callable[[], frozenset[str]]) -> None:
        self._listen, self._revoked_now = listen, revoked
        self._revoked = frozenset[str]()
        self._held: dict[str, jobs.HoldRestJob] = {}
        self._rounds: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._watch = threading.Thread(target=self._look, name="edgewise-split-process", daemon=True)
        self.port = listen.port

    @property
    def pid(self) -> int | None:
        """Process id. None while there is no process."""
        return None if self._process is None else self._process.pid

    def hold(self, rest: jobs.HoldRestJob) -> None:
        """Give it the rest of a run's model, in place of an earlier one."""
        with self._lock:
            self._held[rest.run] = rest
            self._rounds.pop(rest.run, None)
            try:
                self._ask(rest)
            except EdgewiseError:
                del self._held[rest.run]
                raise
            if not self._watch.is_alive():
                self._watch.start()

    def open_round(self, run: str, round: int) -> None:
        """Let devices of a run begin their sessions of this round."""
        with self._lock:
            self._rounds[run] = round
            self._ask(jobs.BeginSessions(run=run, round=round))

    def end_round(self, run: str) -> tuple[jobs.SessionCount, ...]:
        """End the sessions of a run's round, and count those since the process was started."""
        with self._lock:
            done = self._ask(jobs.EndSessions(run=run))
            self._rounds.pop(run, None)
            return done.sessions

    def drop(self, run: str) -> None:
        """Forget the rest of a run's model. It never fails."""
        with self._lock:
            self._held.pop(run, None)
            self._rounds.pop(run, None)
            if self._process is not None:
                with suppress(OSError, DecodeError, EdgewiseError):
                    self._call(jobs.DropRestJob(run=run))

    def close(self) -> None:
        """End the process."""
        self._closing.set()
        with self._lock:
            self._end()
        if self._watch.is_alive():
            self._watch.join()

    # -- with the lock -------------------------------------------------------------------------------------------

    def _ask(self, message: jobs.Asked) -> jobs.SplitJobDone:
        """Send a message, to a process that is started where there is none. Returns its answer."""
        for _ in range(STARTS):
            try:
                if self._process is None:
                    self._start()
                return self._call(message)
            except (OSError, DecodeError) as e:
                LOG.warning("the process with split models ended: %s", e)
                self._end()
        what = "the server's process for split models ends again and again."
        raise StoreError("E-WORKER", what, "look for its memory and into the server's log, then resume the run.")

    def _start(self) -> None:
        """Start the process, and give it all rests and rounds."""
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        env["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p or os.getcwd() for p in sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "edgewise.drivers.workers.split_child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, start_new_session=True,
        )  # fmt: skip
        self._revoked = self._revoked_now()
        self._call(jobs.RevokeJob(names=self._revoked))
        for rest in self._held.values():
            self._call(rest)
        for run, round in self._rounds.items():
            self._call(jobs.BeginSessions(run=run, round=round))
        self.port = self._call(self._listen).port
        self._listen = msgspec.structs.replace(self._listen, port=self.port)  # Devices know this port from now on.

    def _call(self, message: jobs.Asked) -> jobs.SplitJobDone:
        """Send a message and wait for its answer. Raises OSError where the process has ended."""
        stdin, stdout = self._streams()
        jobs.write_split_job(stdin, message)
        answer = jobs.read_answer(stdout)
        if answer is None:
            assert self._process is not None
            raise OSError(f"exit status {self._process.poll()}")
        if isinstance(answer, jobs.SplitJobFailed):
            raise EdgewiseError(answer.code, answer.what, answer.fix)
        return answer

    def _streams(self) -> tuple[BinaryIO, BinaryIO]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout  # type: ignore[return-value]

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                assert stream is not None
                stream.close()
        try:
            process.wait(CLOSE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    # -- in a thread of its own ----------------------------------------------------------------------------------

    def _look(self) -> None:
        """Start a process that ended again, and tell it who is revoked."""
        pause_s = LOOK_S
        while not self._closing.wait(pause_s):
            pause_s = LOOK_S
            try:
                revoked = self._revoked_now()
                with self._lock:
                    if self._closing.is_set():
                        return
                    if self._process is not None and self._process.poll() is not None:
                        LOG.warning("the process with split models ended (exit status %s)", self._process.poll())
                        self._end()
                    if self._held and (self._process is None or revoked != self._revoked):
                        self._ask(jobs.RevokeJob(names=revoked))
                        self._revoked = revoked
            except EdgewiseError as e:
                LOG.warning("the process with split models: %s", e)
                pause_s = 20 * LOOK_S
