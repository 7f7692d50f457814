"""Shared state of a server's routes: database, members, blobs, and waiting requests."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa

from edgewise.core.errors import StoreError
from edgewise.drivers.fleet import blob_places, epoch, mailboxes, members, nonces, sessions, uploads
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.fleet.news import News
from edgewise.drivers.fleet.spool import Chunks
from edgewise.drivers.http import browser, identity
from edgewise.drivers.http.limits import Gatekeeper, LaterError, ServerLimits
from edgewise.drivers.http.meter import Meter
from edgewise.drivers.http.presence import Presence
from edgewise.drivers.http.signatures import Proof
from edgewise.drivers.http.staging import Staging
from edgewise.drivers.storage.blob_store import BlobStore
from edgewise.drivers.storage.fencing import GRACE_S
from edgewise.drivers.storage.files import FOLDER
from edgewise.drivers.storage.store_place import CODES, StorePlace
from edgewise.drivers.workers.split_process import SplitProcess

T = TypeVar("T")
LOG = logging.getLogger("edgewise")
FRESH_S = 1.0  # seconds for which a member is cached; a revocation by another process works after that
REMEMBERED = 65536
SWEEP_S = 10.0  # seconds between two looks for sessions that have ended and that nobody uses
STORE_S = 5.0  # seconds for which the finding about the blobs' store counts
DISK_S = 5.0  # seconds until a caller may return to a full disk
READERS = 4
SEEN_S = 5.0  # seconds between two news of the same device's progress
POLLS = 8  # long polls of a member at a time: a retry may come before its first attempt is known to be lost


class Service:
    """A server's state in ``folder``. Use as a context manager: it holds the writer's lease.

    ``now_s``: wall clock. ``key``: file of the identity. ``database``: URL of a database that servers share; empty:
    SQLite in the folder. ``blobs``: their place in an object store; None: the folder. ``public_url``: as
    ``browser.check_origin``. Safe to use from the event loop and from other threads.
    """

    def __init__(
        self,
        folder: Path,
        limits: ServerLimits,
        now_s: Callable[[], float] = time.time,
        key: str = "server.key",
        database: str = "",
        blobs: StorePlace | None = None,
        public_url: str = "",
    ) -> None:
        self.public_url = browser.checked_url(public_url)
        self.folder, self.now_s, self.limits = folder, now_s, limits
        self._begun_s = now_s(), time.monotonic()
        self.database = Database(folder, now_s, url=database)
        try:
            self.identity = identity.make(folder / key)
            self.blobs: BlobStore = blob_places.opened_server_blobs(
                folder, blobs, self.identity.name, GRACE_S if database else 0.0
            )
            self.presence = Presence(limits.checkin_rate, self._fleet, self.database.shared)  # reads the database
        except Exception:  # Whatever stops the start must release the lease.
            self.database.close()
            raise
        (folder / "spool").mkdir(FOLDER, exist_ok=True)
        self.chunks = Chunks(folder / "spool")
        self.staging = Staging(folder / "staged", now_s)
        self.gate = Gatekeeper(limits)
        self.meter = Meter()
        self.epoch = epoch.load_server_epoch(folder)
        self._told_s: dict[str, float] = {}  # device -> time of the last news of it to other servers
        self.revoked: set[str] = set()  # members revoked since the server started
        self.deliveries, self._arrived = 0, threading.Condition()
        self.authority = b""
        self.rests: SplitProcess | None = None  # where the server listens for sessions of split learning
        self._members: OrderedDict[str, tuple[Member | None, float]] = OrderedDict()
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._polls: dict[str, list[asyncio.Event]] = {}  # those of each member, the oldest first
        self._waiting = 0
        self._free = (0, -1.0)  # free bytes of the disk, and the time of the measurement
        self._sound = (True, -STORE_S)  # whether the store of the blobs answers, and the time of the finding
        self._loop: asyncio.AbstractEventLoop | None = None
        self._readers = ThreadPoolExecutor(READERS, "edgewise-reader")
        self._sweep()
        self.news = News(database, self._hear) if database else None
        self._closing = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep_sessions, name="edgewise-sessions", daemon=True)
        self._sweeper.start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the database."""
        self._closing.set()
        self._sweeper.join()
        if self.news is not None:
            self.news.close()
        if self.rests is not None:
            self.rests.close()
        self._readers.shutdown()
        self.database.close()

    def _fleet(self) -> int:
        with self.database.read() as c:
            return members.count(c)

    def _sweep(self) -> None:
        """Remove chunks of finished uploads that a killed server left."""
        found = self.chunks.uploads()  # before the rows: another server may begin an upload in between
        with self.database.read() as c:
            known = uploads.in_use(c)
        for upload in found:
            if upload not in known:
                self.chunks.drop(upload)

    def _sweep_sessions(self) -> None:
        """Delete sessions and login tokens soon after their time has passed, also those that nobody uses.

        A clock that is set back later then finds nothing to revive.
        """
        while not self._closing.wait(SWEEP_S):
            now_s = self.now_s()
            try:
                with self.database.read() as c:
                    past = sessions.any_expired(c, now_s)
                if past:
                    self.database.write(lambda c, now_s=now_s: sessions.sweep_sessions(c, now_s))  # type: ignore[misc]
            except StoreError as e:
                LOG.warning("sessions that have ended are not deleted yet: %s", e)

    # -- from the event loop -------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Remember the event loop that serves."""
        self._loop = asyncio.get_running_loop()

    async def aside(self, work: Callable[[], T]) -> T:
        """Run work in a thread that reads disks or takes long."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, work)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run a query in a thread."""

        def work() -> T:
            with self.database.read() as c:
                return query(c)

        return await self.aside(work)

    async def write(self, change: Callable[[sa.Connection], T]) -> T:
        """Run a change. It is durable when this returns."""
        return await asyncio.wrap_future(self.database.submit(change))

    async def once(self, proof: Proof, change: Callable[[sa.Connection], T]) -> T:
        """Run a change and spend its request's nonce, in one transaction.

        Raises:
            TransportError: as ``nonces.spend_nonce`` (E-REPLAY, E-REVOKED), and the errors of the change.
        """

        def both(c: sa.Connection) -> T:
            self.spend(c, proof)
            return change(c)

        return await self.write(both)

    async def member(self, name: str) -> Member | None:
        """Return a member, at most ``FRESH_S`` old."""
        found = self._members.get(name)
        if found is None or not 0.0 <= time.monotonic() - found[1] < FRESH_S:
            found = (await self.read(lambda c: members.find(c, name)), time.monotonic())
            self._members[name] = found
            if len(self._members) > REMEMBERED:
                self._members.popitem(last=False)
        return found[0]

    async def person(self, secret: str) -> str | None:
        """Return the id of the member whose session this is. None where there is none. A session past its time is
        deleted where it is seen, so that no clock that is set back revives it.
        """
        now_s = self.now_s()
        name, past = await self.read(
            lambda c: (sessions.session_member(c, secret, now_s), sessions.is_session_expired(c, secret, now_s))
        )
        if past:
            await self.write(lambda c: sessions.sweep_sessions(c, now_s))
        return name

    def spend(self, c: sa.Connection, proof: Proof) -> None:
        """Accept a request once, within the change that it asks for. Raises TransportError(E-REPLAY).

        Nonces are forgotten by a clock that does not jump. With a clock that goes ahead and comes back, the server
        would forget requests and accept them a second time.
        """
        nonces.spend_nonce(c, proof, self._begun_s[0] + time.monotonic() - self._begun_s[1])

    def changed(self, member: Member) -> None:
        """Apply a change of a member's standing: read it again, wake its long poll, and notify the waiters for its
        frames.
        """
        self._tell("member", member.id)
        self._apply(member)

    def _apply(self, member: Member) -> None:
        self._members.pop(member.id, None)
        if member.status == members.REVOKED:
            self.revoked.add(member.id)
            self._wake_waiters()
        self._ring_here(member.id)

    @contextmanager
    def listening(self, device: str, member: str) -> Iterator[asyncio.Event | None]:
        """Return an event that is set when a device has mail, or when a round of a run has ended.

        None where too many requests wait already.

        Args:
            device: the name of a device or of a run.
            member: who waits. A member's oldest poll ends where it begins one more than ``POLLS``.
        """
        if self._waiting >= self.limits.waiting:
            yield None
            return
        bell, polls = asyncio.Event(), self._polls.setdefault(member, [])
        self._waiting += 1
        self._bells.setdefault(device, set()).add(bell)
        polls.append(bell)
        if len(polls) > POLLS:
            polls[-1 - POLLS].set()
        try:
            yield bell
        finally:
            polls.remove(bell)
            if not polls:
                del self._polls[member]
            self._waiting -= 1
            self._bells[device].discard(bell)
            if not self._bells[device]:
                del self._bells[device]

    def check_room(self, size: int) -> None:
        """Refuse a frame where the disk lacks room for ``size`` bytes and the reserve.

        Raises TransportError(E-DISK).
        """
        if self.free_bytes() < size + self.limits.reserve_bytes:
            fix = "send it again when the operator has made room. The server has stored nothing."
            raise LaterError("E-DISK", "the disk of the server is full.", fix, DISK_S)

    def hang_up(self) -> None:
        """End all long polls."""
        for bells in self._bells.values():
            for bell in bells:
                bell.set()

    # -- from anywhere -------------------------------------------------------------------------------------------

    def ring(self, device: str) -> None:
        """Wake the long poll of a device, or those for a run, at all servers."""
        self._tell("ring", device)
        self._ring_here(device)

    def _ring_here(self, device: str) -> None:
        def wake() -> None:
            for bell in self._bells.get(device, ()):
                bell.set()

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(wake)

    def advanced(self, device: str) -> None:
        """Note the progress of a device: a call, or a chunk."""
        now_s = time.monotonic()
        if self.news is not None and now_s - self._told_s.get(device, -SEEN_S) >= SEEN_S:
            self._told_s[device] = now_s
            self._tell("seen", device)
        self.presence.came(device)

    def pause_s(self, device: str, draw: float) -> float:
        """Return the seconds after which a device without mail comes back. Other servers hear of it."""
        pause_s = self.presence.pause_s(device, draw)
        self._tell("pause", f"{device} {pause_s:.0f}")
        return pause_s

    def present(self, devices: Collection[str]) -> int:
        """Count the devices that are present (``Presence``) or wait for mail now."""
        waiting = sum(device in self._bells for device in devices)
        return waiting + self.presence.present([device for device in devices if device not in self._bells])

    def delivered(self) -> None:
        """Wake the waiters for frames, at all servers: ``deliveries`` has grown."""
        self._tell("mail", "")
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        with self._arrived:
            self.deliveries += 1
            self._arrived.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Wait until ``deliveries`` differs from ``seen``, or the time is over."""
        with self._arrived:
            self._arrived.wait_for(lambda: self.deliveries != seen, timeout_s)

    def _tell(self, kind: str, name: str) -> None:
        """Tell the other servers of the same database what happened here."""
        if self.news is not None:
            self.news.tell(kind, name)

    def _hear(self, kind: str, name: str) -> None:
        """Apply what happened at another server. Where its news is lost, waiters look again by themselves."""
        if kind == "ring":
            self._ring_here(name)
        elif kind == "mail":
            self._wake_waiters()
        elif kind == "seen":
            self.presence.came(name)
        elif kind == "pause":
            device, _, pause_s = name.partition(" ")
            self.presence.returns(device, float(pause_s))
        elif kind == "member":
            with suppress(StoreError), self.database.read() as c:
                if (member := members.find(c, name)) is not None:
                    self._apply(member)

    def sweep_blobs(self) -> None:
        """Remove the blobs that no run publishes any more. Where their store does not answer, a later sweep does it."""

        def published() -> set[str]:
            with self.database.read() as c:
                return mailboxes.published(c)

        try:
            self.blobs.sweep(published)
        except StoreError as e:
            if e.code not in CODES:
                raise
            LOG.warning("blobs were not swept: %s", e)

    def drop_chunks(self, gone: list[str]) -> None:
        """Remove the chunks of finished uploads."""
        for upload in gone:
            self.chunks.drop(upload)

    def free_bytes(self) -> int:
        """Return the free bytes on the folder's disk, at most ``FRESH_S`` old."""
        free, at_s = self._free
        if not 0.0 <= time.monotonic() - at_s < FRESH_S:
            free = shutil.disk_usage(self.folder).free
            self._free = free, time.monotonic()
        return free

    def checks(self) -> dict[str, bool]:
        """Check whether this server can do its work: commit, hold the lease of its folder, hand out blobs, accept
        frames.
        """
        return {
            "database": self.database.fault() is None,
            "lease": self.database.shared or self.database.lease_left_s() > 0.0,
            "blobs": self._blobs_answer(),
            "disk": self.free_bytes() >= self.limits.reserve_bytes,
        }

    def _blobs_answer(self) -> bool:
        """Tell whether the store of the blobs can be used, at most ``STORE_S`` old."""
        sound, at_s = self._sound
        if not 0.0 <= time.monotonic() - at_s < STORE_S:
            sound = self.blobs.fault() is None
            self._sound = sound, time.monotonic()
        return sound

    @property
    def waiting(self) -> int:
        """Number of long polls at this moment."""
        return self._waiting
