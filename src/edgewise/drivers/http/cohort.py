"""Enrolled devices as a Cohort port: the coordinator's frames go into their inboxes, and theirs come to it in order.

    with Server(folder, host, port) as server:
        cohort = HttpCohort(server.service, plan.run, plan.frame_limit_bytes)
        Coordinator(plan, population, cohort, store, ...).run(...)

The database has every frame before anybody acts on it. After a crash the cohort of the same run finds the mail of the
round that was open: devices go on where they are, and what had come is delivered, again where it was before.
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
LOOK_S = 1.0  # how often devices that are silent are looked for


class Halted(Exception):
    """The server leaves a run in the middle of a round; it goes on there when it is played again."""


class HttpCohort:
    """A Cohort port over a server's mailboxes, for one run; used by one thread.

    Args:
        run: identity of the run. frame_limit_bytes: of frames to devices.
        silence_s: a device that owes an answer and neither calls nor sends a chunk for so long is lost. So is one
            that is revoked, at once.
        kept: digest -> bytes of blobs that stay published beside those of the round; they are stored already.
        halted: whether to leave the run now; asked every second. ``receive`` raises Halted then.
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
        self._after = 0  # number of the last frame that was delivered
        self._sends: deque[tuple[DeviceId, Future[int]]] = deque()
        self._lost: deque[Absent] = deque()
        self._awaited: dict[DeviceId, float] = {}  # when it was sent something last

    def now_s(self) -> float:
        """Seconds since the last publish."""
        return time.monotonic() - self._zero_s

    def publish(self, blobs: Sequence[vector.Buffer]) -> Sequence[str]:
        """See Cohort. Blobs that no run publishes any more are removed."""
        service = self._service
        digests = tuple(service.blobs.put(blob) for blob in blobs)
        service.blobs.sync()
        sizes = {**self._kept, **dict(zip(digests, map(len, blobs), strict=True))}

        def change(c: sa.Connection) -> set[str]:
            mailboxes.publish(c, self._run, sizes)
            return mailboxes.published(c)

        service.blobs.sweep(service.database.write(change))
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

        self._awaited[to] = time.monotonic()
        future = service.database.submit(change)
        future.add_done_callback(lambda _: service.ring(to))
        self._sends.append((to, future))

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """See Cohort. Devices live on when a server dies: nothing is brought back to them, and their mail lies in the
        database. What is awaited is posted again, which changes nothing where it lies there."""
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
            seen = service.deliveries
            if (arrived := self._next()) is not None:
                return arrived
            if self._lost or self._find_lost():
                return self._lost.popleft()
            left_s = until_s - time.monotonic()
            if left_s <= 0.0:
                return None
            service.wait(seen, min(left_s, LOOK_S))

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """See Cohort. Without ``keep`` the round's key is destroyed, and with it all frames that lie here."""
        self._settle()
        service = self._service
        gone = service.database.write(lambda c: mailboxes.close(c, self._run, keep))
        service.drop_chunks(gone)
        if not keep:
            service.database.scrub()
        for device in [d for d in self._awaited if d not in keep]:
            self._forget(device)
        self._lost = deque(lost for lost in self._lost if lost.device in keep)

    def _settle(self) -> None:
        """Wait until all that was sent is durable."""
        while self._sends:
            to, future = self._sends.popleft()
            if not future.result():
                self._lose(to)

    def _next(self) -> Arrived | None:
        """The next frame that has come, opened."""
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
        """Look for a device that is silent, or was revoked meanwhile."""
        now = time.monotonic()
        for device, sent_s in self._awaited.items():
            silent_s = now - max(sent_s, self._service.progress_s.get(device, 0.0))
            if silent_s > self._silence_s or device in self._service.revoked:
                self._lose(device)
                return True
        return False

    def _lose(self, device: DeviceId) -> None:
        self._forget(device)
        self._lost.append(Absent(device, DROPPED, self.now_s()))

    def _forget(self, device: DeviceId) -> None:
        self._awaited.pop(device, None)
