"""What the routes of a server share: its database, its members, its blobs, and who is waiting for what."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from edgewise.drivers.fleet import epoch, members, nonces, uploads
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.fleet.spool import Chunks
from edgewise.drivers.http import identity
from edgewise.drivers.http.limits import Gatekeeper, Later, Limits
from edgewise.drivers.http.meter import Meter
from edgewise.drivers.http.signatures import Proof
from edgewise.drivers.http.staging import Staging
from edgewise.drivers.storage.blobs import Blobs
from edgewise.drivers.storage.files import FOLDER

T = TypeVar("T")
FRESH_S = 1.0  # how long a member is remembered: a revocation by another process works after this long
REMEMBERED = 65536
DISK_S = 5.0  # when to come back to a full disk
READERS = 4


class Service:
    """A server's state in ``folder``; use as a context manager: it holds the writer's lease.

    ``now_s``: wall clock. ``key``: file of the identity. Safe to use from the event loop and from other threads.
    """

    def __init__(
        self, folder: Path, limits: Limits, now_s: Callable[[], float] = time.time, key: str = "server.key"
    ) -> None:
        self.folder, self.now_s, self.limits = folder, now_s, limits
        self._begun_s = now_s(), time.monotonic()
        self.database = Database(folder, now_s)
        self.identity = identity.make(folder / key)
        for sub in ("blobs", "spool"):
            (folder / sub).mkdir(FOLDER, exist_ok=True)
        self.blobs, self.chunks = Blobs(folder / "blobs"), Chunks(folder / "spool")
        self.staging = Staging(folder / "staged", now_s)
        self.gate = Gatekeeper(limits)
        self.meter = Meter()
        self.epoch = epoch.load(folder)
        self.progress_s: dict[str, float] = {}  # device -> when it last got on, on the monotonic clock
        self.revoked: set[str] = set()  # since the server started
        self.deliveries, self._arrived = 0, threading.Condition()
        self.authority = b""
        self._members: OrderedDict[str, tuple[Member | None, float]] = OrderedDict()
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._waiting = 0
        self._free = (0, -1.0)  # bytes of the disk, and when they were looked up
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers = ThreadPoolExecutor(READERS, "edgewise-reader")
        self._sweep()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back the database."""
        self._readers.shutdown()
        self.database.close()

    def _sweep(self) -> None:
        """Remove the chunks that a killed server left of uploads that are over."""
        with self.database.read() as c:
            known = uploads.in_use(c)
        for upload in self.chunks.uploads():
            if upload not in known:
                self.chunks.drop(upload)

    # -- from the event loop -------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Note the event loop that serves."""
        self._loop = asyncio.get_running_loop()

    async def aside(self, work: Callable[[], T]) -> T:
        """Run what reads disks, or takes long, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query."""

        def work() -> T:
            with self.database.read() as c:
                return query(c)

        return await self.aside(work)

    async def write(self, change: Callable[[sa.Connection], T]) -> T:
        """Run a change; it is durable when this returns."""
        return await asyncio.wrap_future(self.database.submit(change))

    async def once(self, proof: Proof, change: Callable[[sa.Connection], T]) -> T:
        """Run a change and spend its request's nonce, in one transaction.

        Raises TransportError as ``nonces.spend`` (E-REPLAY, E-REVOKED), and what the change raises.
        """

        def both(c: sa.Connection) -> T:
            self.spend(c, proof)
            return change(c)

        return await self.write(both)

    async def member(self, name: str) -> Member | None:
        """A member as it was at most ``FRESH_S`` ago."""
        found = self._members.get(name)
        if found is None or not 0.0 <= time.monotonic() - found[1] < FRESH_S:
            found = (await self.read(lambda c: members.find(c, name)), time.monotonic())
            self._members[name] = found
            if len(self._members) > REMEMBERED:
                self._members.popitem(last=False)
        return found[0]

    def spend(self, c: sa.Connection, proof: Proof) -> None:
        """Take a request once, within the change that it asks for. Raises TransportError(E-REPLAY).

        Nonces are forgotten by a clock that does not jump. One that goes ahead and comes back would forget requests
        and take them a second time.
        """
        nonces.spend(c, proof, self._begun_s[0] + time.monotonic() - self._begun_s[1])

    def changed(self, member: Member) -> None:
        """A member's standing has changed: read it anew, wake its long poll, and tell who waits for its frames."""
        self._members.pop(member.id, None)
        if member.status == members.REVOKED:
            self.revoked.add(member.id)
            self.delivered()
        self.ring(member.id)

    @contextmanager
    def listening(self, device: str) -> Iterator[asyncio.Event | None]:
        """An event that is set when a device has mail, or when a round of a run has ended; None where too many wait
        already. ``device``: its name, or the run's."""
        if self._waiting >= self.limits.waiting:
            yield None
            return
        bell = asyncio.Event()
        self._waiting += 1
        self._bells.setdefault(device, set()).add(bell)
        try:
            yield bell
        finally:
            self._waiting -= 1
            self._bells[device].discard(bell)
            if not self._bells[device]:
                del self._bells[device]

    def check_room(self, size: int) -> None:
        """Raises TransportError(E-DISK) where the disk has no room for ``size`` bytes more and the reserve."""
        if self.free_bytes() < size + self.limits.reserve_bytes:
            fix = "it is kept nowhere here: send it again when the operator has made room."
            raise Later("E-DISK", "the disk of the server is full.", fix, DISK_S)

    def hang_up(self) -> None:
        """End all long polls."""
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    # -- from anywhere -------------------------------------------------------------------------------------------

    def ring(self, device: str) -> None:
        """Wake the long poll of a device, or those for a run."""

        def wake() -> None:
            for bell in self._bells.get(device, ()):
                bell.set()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(wake)

    def advanced(self, device: str) -> None:
        """A device got on: it called, or a chunk of it came."""
        self.progress_s[device] = time.monotonic()

    def present(self, devices: Collection[str], within_s: float) -> int:
        """How many of these devices have called within that time, or wait for mail now."""
        since_s = time.monotonic() - within_s
        return sum(self.progress_s.get(device, 0.0) >= since_s or device in self._bells for device in devices)

    def delivered(self) -> None:
        """Wake whoever waits for frames: ``deliveries`` has grown."""
        with self._arrived:
            self.deliveries += 1
            self._arrived.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Wait until ``deliveries`` is not ``seen`` any more, or the time is over."""
        with self._arrived:
            self._arrived.wait_for(lambda: self.deliveries != seen, timeout_s)

    def drop_chunks(self, gone: list[str]) -> None:
        """Remove the chunks of uploads that are over."""
        for upload in gone:
            self.chunks.drop(upload)

    def free_bytes(self) -> int:
        """Room on the disk of the folder, at most ``FRESH_S`` old."""
        free, at_s = self._free
        if not 0.0 <= time.monotonic() - at_s < FRESH_S:
            free = shutil.disk_usage(self.folder).free
            self._free = free, time.monotonic()
        return free

    def checks(self) -> dict[str, bool]:
        """Whether this server can do its work: commit, hold the lease of its folder, take frames."""
        return {
            "database": not self.database.fault(),
            "lease": self.database.lease_left_s() > 0.0,
            "disk": self.free_bytes() >= self.limits.reserve_bytes,
        }

    @property
    def waiting(self) -> int:
        """Long polls at this moment."""
        return self._waiting
