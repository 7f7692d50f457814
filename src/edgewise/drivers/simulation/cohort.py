"""The simulated cohort: real frames of devices in virtual time, over any executor.

Each device has a speed and a link, drawn by the seed or taken from a trace. The arrival time of an answer is known
before anyone trains. This also holds where devices choose how much to send, because the choice depends only on
announced sizes and times. So arrivals are delivered in virtual order, whichever job finishes first in reality, and the
order is the same on every executor. Devices that would answer after the round's goal need not be trained. A deadline
has a meaning on one machine too.
The clock is zero at the last ``publish``, so a resumed round has the times of the first attempt.

In asynchronous rounds (``Sampling.buffer``) devices work on over the end of a round. The clock goes on too, and the
coordinator gives it to a new process (``Cohort.resume``) with the invitations that were under way.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from math import inf

from edgewise.core import frame, vector
from edgewise.core.keys import Key, derive, generator
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.drivers.simulation.link_traces import Traces
from edgewise.drivers.workers import jobs
from edgewise.drivers.workers.executor import Executor, checked
from edgewise.engine.broadcast import downloads
from edgewise.engine.checkpoint import Downlink
from edgewise.engine.ports import Absent, Arrived, Sent
from edgewise.engine.round import DROPPED
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.sections import SimulationSection
from edgewise.plan.upload_budget import link_estimate

HISTORY = 16  # number of transfers over its link that a device remembers


@dataclass(frozen=True, slots=True)
class Fate:
    """The outcome of one message: answered or lost after ``after_s`` virtual seconds.

    After training the device knows two things: ``elapsed_s`` seconds have passed, and its next upload will probably
    reach ``up_mbit``. For a message without training ``elapsed_s`` is None.
    """

    after_s: float
    lost: bool
    elapsed_s: float | None = None
    up_mbit: float = inf


@dataclass(frozen=True, slots=True)
class World:
    """The simulated devices and links.

    A device's speed is exp(speed_spread N(0, 1)), with 10 % log-normal jitter in every round. Its uplink is a sequence
    of samples. With traces, the samples are those of one trace, from a random start, repeated at the end. Without them,
    they are link_mbit exp(link_spread N(0, 1)) per device, with 10 % jitter per sample, within the limits. In round r
    the device downloads at ``link_down`` times sample r and uploads at sample r + 1. It measures its uplink once a
    round. So it knows samples 0 to r when it decides what to send, and never the sample of its own upload. It can
    therefore be late although it chose with care.
    """

    section: SimulationSection
    key: Key = field(repr=False)
    traces: Traces = ()

    def uplink_mbit(self, device: DeviceId, samples: Iterable[int]) -> list[float]:
        """Draw samples of a device's uplink."""
        s, fixed = self.section, generator(derive(self.key, "link", device))
        if self.traces:
            trace = self.traces[int(fixed.integers(len(self.traces)))]
            first = int(fixed.integers(len(trace)))
            return [trace[(first + i) % len(trace)] for i in samples]
        mean = s.link_mbit * fixed.lognormal(0.0, s.link_spread)
        drawn = (mean * generator(derive(self.key, "link", device, i)).lognormal(0.0, 0.1) for i in samples)
        return [float(min(max(link, s.link_low_mbit), s.link_high_mbit)) for link in drawn]

    def fate(
        self,
        device: DeviceId,
        round: int,
        steps: int,
        bytes_down: float,
        upload: Callable[[float, float], float],
        history: int = HISTORY,
    ) -> Fate:
        """Compute the time until the answer, download + steps x step_s / speed + upload, or until the device drops out.

        Args:
            upload: (elapsed_s, up_mbit) -> bytes of the answer, for a device that has spent ``elapsed_s`` and expects
                ``up_mbit``.
            history: number of transfers that the device remembers; 1 where it has no choice that would depend on them.
        """
        s = self.section
        slow = generator(derive(self.key, "world", device)).lognormal(0.0, s.speed_spread)
        now = generator(derive(self.key, "world", device, round))
        train_s = steps * s.step_s * slow * now.lognormal(0.0, 0.1)
        *known, next_mbit = self.uplink_mbit(device, range(max(0, round + 1 - history), round + 2))
        elapsed_s = 8.0 * bytes_down / (known[-1] * s.link_down * 1e6) + train_s
        up_mbit = link_estimate(known)
        upload_s = 8.0 * upload(elapsed_s, up_mbit) / (next_mbit * 1e6)
        after_s = elapsed_s + upload_s
        lost = bool(now.random() < s.dropout)
        return Fate(after_s * now.random() if lost else after_s, lost, elapsed_s, up_mbit)

    def answer(self, device: DeviceId, round: int, step: int, bytes_down: float, bytes_up: float) -> Fate:
        """Compute the time until the answer to message ``step`` (1, 2, ...) of the round's secure aggregation.

        It is download and upload at the rate of the round's upload, or less where the device drops out. Computing is
        not counted.
        """
        now = generator(derive(self.key, "step", device, round, step))
        (mbit,) = self.uplink_mbit(device, (round + 1,))
        after_s = 8.0 * (bytes_down / self.section.link_down + bytes_up) / (mbit * 1e6)
        lost = bool(now.random() < self.section.step_dropout)
        return Fate(after_s * now.random() if lost else after_s, lost)


@dataclass(order=True)
class _Expected:
    at_s: float
    order: int
    device: DeviceId = field(compare=False)
    frame: bytes = field(compare=False)
    fate: Fate = field(compare=False)
    blobs: tuple[str, ...] = field(compare=False)  # that an invitation names; none for other frames

    __repr__ = outline


class SimulatedCohort:
    """A cohort of simulated devices over an executor (a Cohort port)."""

    def __init__(self, executor: Executor, plan: Plan, world: World, batch_devices: int = 1) -> None:
        """Begin at time zero, without messages. ``batch_devices``: number of devices that train in one pass."""
        self._executor, self._plan, self._world, self._batch = executor, plan, world, batch_devices
        self._expected: list[_Expected] = []  # a heap by arrival of the answers that are not delivered yet
        self._unsent: list[_Expected] = []  # a heap by arrival of the frames that the executor does not have yet
        self._under_way = 0
        self._results: dict[int, jobs.Handled] = {}
        self._sizes: dict[str, int] = {}  # bytes of the available blobs
        self._steps: Counter[DeviceId] = Counter()
        self._records: dict[DeviceId, int] = {}  # counts of devices, where the recipe counts passes
        self._now_s = 0.0
        self._order = 0
        self._goes_on = plan.sampling.buffer is not None

    def now_s(self) -> float:
        """Virtual seconds since the last publish, or in asynchronous rounds since the run began."""
        return self._now_s

    def restore(self, down: Downlink) -> None:
        """Give the devices the model that the deltas start from, after a stop. Real devices have it on their disks."""
        self._executor.broadcast(jobs.Held(round=down.anchor_round, data=vector.to_bytes(down.anchor)))

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        """See Cohort. In asynchronous rounds the blobs of invitations under way stay available too."""
        digests = tuple(vector.digest(blob) for blob in blobs)
        kept = {digest: self._sizes[digest] for item in self._expected for digest in item.blobs}
        for digest, blob in zip(digests, blobs, strict=True):
            if digest not in self._sizes:
                self._executor.broadcast(jobs.Blob(digest=digest, data=memoryview(blob), keep=(*digests, *kept)))
        self._sizes = kept | dict(zip(digests, map(len, blobs), strict=True))
        if not self._goes_on:
            self._now_s = 0.0
        return digests

    def send(self, to: DeviceId, raw: bytes) -> None:
        """See Cohort. A probe is answered at once and is never lost. A device leaves earlier work for an invitation."""
        item = self._expect_answer(to, raw)
        if self._goes_on and item.blobs:
            self._forget([old for old in self._expected if old.device == to])
        heapq.heappush(self._expected, item)
        heapq.heappush(self._unsent, item)

    def _expect_answer(self, to: DeviceId, raw: bytes) -> _Expected:
        """Compute when the answer to a frame will come, or that it is lost."""
        message = frame.from_server(raw, self._plan.frame_limit_bytes)
        fate, blobs = Fate(0.0, False), tuple[str, ...]()
        if isinstance(message, frame.Invite):
            blobs = downloads(message)
            down = len(raw) + sum(self._sizes[digest] for digest in blobs)
            upload = partial(self._plan.expected_bytes, message.round)
            history = HISTORY if self._plan.rungs else 1
            fate = self._world.fate(to, message.round, self._local_steps(to, message.rule), down, upload, history)
        elif isinstance(message, frame.Step):
            self._steps[to] += 1
            up = self._plan.answer_bytes(message.round, message.body, message.rung)
            fate = self._world.answer(to, message.round, self._steps[to], len(raw), up)
        self._order += 1
        return _Expected(self._now_s + fate.after_s, self._order, to, raw, fate, blobs)

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """See Cohort.

        Simulated devices end with their server. Devices in a session of secure aggregation come back to it by replaying
        the frames that they had been sent. Equal secrets lead to the same session, whatever the devices answer on the
        way.
        """
        answered = defaultdict[DeviceId, list[_Expected]](list)
        for one in sent:
            self._now_s = one.at_s
            if one.awaited:
                self.send(one.device, one.frame)
            elif not (item := self._expect_answer(one.device, one.frame)).fate.lost:
                answered[one.device].append(item)
        if self._plan.interactive:
            for turn in zip_longest(*answered.values()):  # a device takes its frames one after the other
                items = [item for item in turn if item is not None]
                for item in items:
                    self._submit_frames([item])
                for _ in items:
                    self._take_result()
            self._results.clear()
        self._now_s = at_s

    def _local_steps(self, device: DeviceId, rule: frame.LocalRule) -> int:
        """Return the number of steps of a rule for a device.

        Where the rule counts passes, the device is asked once for its number of records. No other job is in progress
        while a round's invitations are sent.
        """
        if rule.epochs and device not in self._records:
            self._executor.submit(jobs.Count(device=device))
            (counted,) = checked([self._executor.result()])
            assert isinstance(counted, jobs.CountedRecords)
            self._records[device] = counted.records or 0
        return rule.counted(self._records.get(device, 0), self._plan.batch).steps

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """See Cohort."""
        until_s = self._now_s + timeout_s
        while self._expected and self._expected[0].at_s <= until_s:
            self._dispatch_arrivals()
            item = heapq.heappop(self._expected)
            self._now_s = max(self._now_s, item.at_s)
            if item.fate.lost:
                return Absent(item.device, DROPPED, item.at_s)
            done = self._wait_for(item.order)
            if done.frame is not None:
                return Arrived(item.device, done.frame, item.at_s, done.train_s, done.encode_s)
        self._now_s = until_s if timeout_s != inf else self._now_s
        return None

    def _wait_for(self, order: int) -> jobs.Handled:
        """Wait for the executor's answer to the frame of this order."""
        while order not in self._results:
            self._take_result()
            self._dispatch_arrivals()
        return self._results.pop(order)

    def _take_result(self) -> None:
        """Wait for any answer of the executor."""
        (result,) = checked([self._executor.result()])
        assert isinstance(result, jobs.Handled | jobs.HandledMany)
        self._results |= {one.id: one for one in ([result] if isinstance(result, jobs.Handled) else result.items)}
        self._under_way -= 1

    def _submit_frames(self, items: Sequence[_Expected]) -> None:
        """Give the executor one job with the frames of these devices."""
        self._under_way += 1
        handles = tuple(
            jobs.Handle(
                id=item.order,
                device=item.device,
                frame=item.frame,
                elapsed_s=item.fate.elapsed_s,
                up_mbit=item.fate.up_mbit,
            )
            for item in items
        )
        self._executor.submit(handles[0] if len(handles) == 1 else jobs.HandleMany(id=handles[0].id, items=handles))

    def _dispatch_arrivals(self) -> None:
        """Keep the executor busy with the next arrivals, in order, at most two per process.

        Results wait as small frames, and few devices train that the round will not need. Devices that train together
        are next to one another in that order, so the executor does not change who they are.
        """
        while self._unsent and self._under_way < 2 * self._executor.parallel:
            items: list[_Expected] = []
            while self._unsent and len(items) < self._batch:
                item = heapq.heappop(self._unsent)
                items += [] if item.fate.lost else [item]
            if items:
                self._submit_frames(items)

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """See Cohort. In asynchronous rounds invitations stay, because an evaluation ends here and no round."""
        if self._goes_on:
            while self._under_way:
                self._take_result()
            self._forget([item for item in self._expected if not item.blobs])
            return
        self._executor.cancel()
        self._expected.clear()
        self._unsent.clear()
        self._under_way = 0
        self._results.clear()
        self._steps = Counter({device: n for device, n in self._steps.items() if device in keep})

    def carry(self, at_work: Mapping[DeviceId, int]) -> None:
        """See Cohort. Jobs that have begun are finished. A device has one invitation at a time."""
        while self._under_way:
            self._take_result()
        self._forget([item for item in self._expected if item.device not in at_work or not item.blobs])

    def _forget(self, items: Sequence[_Expected]) -> None:
        """Drop what is expected of devices, and the answers to it that are there already. No job is in progress."""
        gone = {item.order for item in items}
        self._expected = [item for item in self._expected if item.order not in gone]
        self._unsent = [item for item in self._unsent if item.order not in gone]
        heapq.heapify(self._expected)
        heapq.heapify(self._unsent)
        self._results = {order: done for order, done in self._results.items() if order not in gone}
