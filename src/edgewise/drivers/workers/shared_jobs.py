"""The jobs that every worker must have done before any other, as few as bring a new worker to the state of the others.

    Setup, Compile, the last Rest, and the blobs that are still needed

In a run whose broadcast has deltas, a worker also follows the devices' model. It begins from the last ``Held``, to
which the deltas that are no longer published have been added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edgewise.core import frame, vector
from edgewise.core.errors import DecodeError
from edgewise.core.pipeline import Pipeline
from edgewise.drivers.workers import jobs
from edgewise.engine import broadcast

Shared = jobs.Setup | jobs.Compile | jobs.SILENT


@dataclass(frozen=True)
class SharedJob:
    """A job with its place in the order of all, from 1, and what ``store`` made of it."""

    place: int
    job: Any
    stored: Any


class SharedJobs:
    """The jobs of all workers. Not safe for several threads at a time.

    Args:
        store: puts a job where all workers find it.
    """

    def __init__(self, store: Callable[[jobs.Job], Any]) -> None:
        self._store = store
        self._list: list[SharedJob] = []
        self._next = 1
        self._round: int | None = None  # of the model that a worker has after all jobs
        self.pipe: Pipeline | None = None  # of the deltas, once the plan is known

    def since(self, place: int) -> list[SharedJob]:
        """List the jobs for a worker that has done those up to ``place``."""
        return [one for one in self._list if one.place > place]

    def add(self, job: Any) -> int:
        """Add a job at the end, and drop those that it makes needless. Returns its place."""
        place, self._next = self._next, self._next + 1
        self._list.append(SharedJob(place, job, self._store(job)))
        match job:
            case jobs.Blob():
                self._reach(job)
                # Blobs of an evaluation come without the deltas, which come again. Those of a round name all of them.
                all_named = self._delta(job) is not None
                for one in [one for one in self._list[:-1] if _is_dropped(one.job, job)]:
                    if all_named or self._delta(one.job) is None:
                        self._list.remove(one)
                        self._fold(one)
            case jobs.Held():
                self._round = job.round
                self._drop_last(jobs.Held, place)
            case jobs.Rest():
                self._drop_last(jobs.Rest, place)
        return place

    def invited(self, raw: bytes, limit_bytes: int) -> None:
        """Hold the snapshot that a frame names, where devices follow deltas from it in later rounds."""
        if self.pipe is None:
            return
        message = frame.from_server(raw, limit_bytes)
        if not isinstance(message, frame.Invite) or message.base is not None:
            return
        if self._round is None or message.round > self._round:
            data = next((b.job.data for b in self._list if getattr(b.job, "digest", "") == message.model), None)
            if data is not None:
                self.add(jobs.Held(round=message.round, data=data))

    def _reach(self, blob: jobs.Blob) -> None:
        """Count a delta that leads on from the round of the model."""
        if (delta := self._delta(blob)) is not None and self._round is not None and delta.round == self._round + 1:
            self._round = delta.round

    def _fold(self, dropped: SharedJob) -> None:
        """Add a delta that is no longer published to the model that a new worker begins from."""
        if (delta := self._delta(dropped.job)) is None:
            return
        for i, one in enumerate(self._list):
            if isinstance(one.job, jobs.Held) and one.job.round + 1 == delta.round:
                assert self.pipe is not None
                model = vector.from_bytes(one.job.data, len(one.job.data) // 4)
                after = broadcast.follow(self.pipe, model, dropped.job.data)
                held = jobs.Held(round=delta.round, data=vector.to_bytes(after))
                self._list[i] = SharedJob(dropped.place, held, self._store(held))
                self._list.sort(key=lambda one: one.place)
                return

    def _delta(self, job: Any) -> frame.Delta | None:
        """Return the delta in a blob. None for other blobs."""
        if self.pipe is None or not isinstance(job, jobs.Blob) or job.data[: len(frame.MAGIC)] != frame.MAGIC:
            return None
        try:
            return frame.delta(job.data)
        except DecodeError:
            return None

    def _drop_last(self, kind: type, place: int) -> None:
        """Drop earlier jobs of a kind that the one at ``place`` replaces."""
        self._list = [one for one in self._list if one.place == place or not isinstance(one.job, kind)]


def _is_dropped(job: Any, newest: jobs.Blob) -> bool:
    """Tell whether the newest blob makes hosts drop this one."""
    return isinstance(job, jobs.Blob) and job.digest not in newest.keep
