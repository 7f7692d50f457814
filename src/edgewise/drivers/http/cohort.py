"""Enrolled devices as a Cohort port. The coordinator's frames go to their inboxes, and their frames come back in order.

    with Server(folder, host, port) as server:
        cohort = HttpCohort(server.service, plan.run, plan.frame_limit_bytes)
        Coordinator(plan, population, cohort, store, ...).run(...)

The database has every frame before anybody acts on it. After a crash the cohort of the same run finds the mail of the
open round. Devices continue where they are. Frames that had come are delivered again, in the same order.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType

import sqlalchemy as sa

from edgewise.core import frame, vector
from edgewise.core.training import DeviceId
from edgewise.drivers.fleet import mailboxes, members
from edgewise.drivers.fleet.uploads import CHUNK_BYTES
from edgewise.drivers.http.service import Service
from edgewise.engine.ports import Absent, Arrived, Sent
from edgewise.engine.round import DROPPED

SILENCE_S = 120.0
LOOK_S = 1.0  # seconds between two searches for silent devices


class Halted(Exception):
    """The server leaves a run in the middle of a round. The round continues when the run is played again."""


class HttpCohort:
    """A Cohort port over a server's mailboxes, for one run. Only one thread may use it.

    Args:
        service: the server's state.
        run: identity of the run.
        frame_limit_bytes: the largest frame to a device.
        silence_s: seconds after which a device is lost that owes an answer and neither calls nor sends a chunk. They
            begin at the latest return that a server may have asked it for (``Presence.earliest_s``). A revoked device
            is lost at once.
        kept: digest -> bytes of stored blobs that stay published beside those of the round.
        halted: whether to leave the run now. It is called every second, and ``receive`` then raises Halted.
    """

    def __init__(
        self,
        service: Service,
        run: str,
        frame_limit_bytes: int,
        silence_s: float = SILENCE_S,
        kept: Mapping[str, int] = MappingProxyType({}),
        halted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._service, self._run = service, run
        self._limit, self._silence_s = frame_limit_bytes, silence_s
        self._kept, self._halted = kept, halted
        self._zero_s = time.monotonic()
        self._after = 0  # number of the last delivered frame
        self._sends: deque[tuple[DeviceId, Future[int]]] = deque()
        self._lost: deque[Absent] = deque()
        self._awaited: dict[DeviceId, float] = {}  # time from which the device may be silent

    def now_s(self) -> float:
        """Return the seconds since the last publish, or in asynchronous rounds those in which rounds were open."""
        return time.monotonic() - self._zero_s

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        """See Cohort. Removes blobs that no run publishes any more."""
        service = self._service
        with service.blobs.kept() as put:
            digests = tuple(put(blob) for blob in blobs)
            service.blobs.sync()
            sizes = {**self._kept, **dict(zip(digests, map(len, blobs), strict=True))}
            service.database.write(lambda c: mailboxes.publish(c, self._run, sizes), fenced=True)
        service.sweep_blobs()
        self._zero_s = time.monotonic()
        return digests

    def send(self, to: DeviceId, raw: bytes) -> None:
        """See Cohort. A device that is not approved, or not any more, is lost at once."""
        message, service = frame.from_server(raw, self._limit), self._service

        def change(c: sa.Connection) -> int:
            member = members.find(c, to)
            if member is None or member.status != members.APPROVED:
                return 0
            return mailboxes.post(c, to, raw, message, service.now_s())

        self._awaited[to] = service.presence.earliest_s(to)
        future = service.database.submit(change, fenced=True)
        future.add_done_callback(lambda _: service.ring(to))
        self._sends.append((to, future))

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """See Cohort.

        Devices live on when a server dies, and their mail is in the database, so they need no replay. Awaited frames
        are posted again, which changes nothing where they are still in the inbox.
        """
        for one in sent:
            if one.awaited:
                self.send(one.device, one.frame)
        self._zero_s = time.monotonic() - at_s

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """See Cohort."""
        service, until_s = self._service, time.monotonic() + timeout_s
        while True:
            if self._halted():
                raise Halted
            self._settle()
            deliveries = service.deliveries
            if (arrived := self._next()) is not None:
                return arrived
            if self._lost or self._find_lost():
                return self._lost.popleft()
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                return None
            service.wait(deliveries, min(left_s, LOOK_S))

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """See Cohort. Without ``keep`` the round's key is destroyed, and with it all frames that are stored here."""
        self._settle()
        service = self._service
        gone = service.database.write(lambda c: mailboxes.close(c, self._run, keep), fenced=True)
        service.drop_chunks(gone)
        if not keep:
            service.database.scrub()
        for device in [d for d in self._awaited if d not in keep]:
            self._forget(device)
        self._lost = deque(lost for lost in self._lost if lost.device in keep)

    def carry(self, at_work: Mapping[DeviceId, int]) -> None:
        """See Cohort. A round's key is destroyed when no device works on its invitation any more."""
        if not at_work:
            self.close_round()
            return
        self._settle()
        service = self._service
        gone = service.database.write(lambda c: mailboxes.retain(c, self._run, at_work), fenced=True)
        service.drop_chunks(gone)
        service.database.scrub()
        for device in [d for d in self._awaited if d not in at_work]:
            self._forget(device)
        self._lost = deque(lost for lost in self._lost if lost.device in at_work)

    def _settle(self) -> None:
        """Wait until all sent frames are durable."""
        while self._sends:
            to, future = self._sends.popleft()
            if not future.result():
                self._lose(to)

    def _next(self) -> Arrived | None:
        """Open the next frame that has come."""
        service = self._service
        with service.database.read() as c:
            found = mailboxes.arrivals(c, self._run, self._after)
            key = mailboxes.round_key(c, self._run, found[0].round) if found else b""
        if not found:
            return None
        (letter,) = found
        raw = mailboxes.opened(letter, key, service.chunks, CHUNK_BYTES)
        self._after = letter.number
        self._forget(letter.device)
        return Arrived(letter.device, raw, self.now_s() - max(0.0, service.now_s() - letter.at_s))

    def _find_lost(self) -> bool:
        """Look for a device that is silent or was revoked."""
        now = time.monotonic()
        for device, sent_s in self._awaited.items():
            silent_s = now - max(sent_s, self._service.presence.last_s(device))
            if silent_s > self._silence_s or device in self._service.revoked:
                self._lose(device)
                return True
        return False

    def _lose(self, device: DeviceId) -> None:
        self._forget(device)
        self._lost.append(Absent(device, DROPPED, self.now_s()))

    def _forget(self, device: DeviceId) -> None:
        self._awaited.pop(device, None)
