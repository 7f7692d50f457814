"""The runs of a server, each in a thread. A server that starts again continues the runs that were running.

    hosting = Hosting(service)
    hosting.submit(submission, made_by="...")          # invites its devices at once
    hosting.ask(run, served.PAUSED)                    # pauses after the current round
    hosting.close()                                    # stops at once; rounds continue at the next start

``playing`` plays a single run. This module decides when a run plays, waits, pauses and ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from threading import Event, Lock, Thread

from edgewise.apps.server import sharing, submission
from edgewise.apps.server.decisions import BY_SERVER, current_member
from edgewise.apps.server.playing import Player, Tell
from edgewise.apps.server.submission import Submission
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.core.own_code import fault_of
from edgewise.core.training import DeviceId
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import audit, mailboxes, served
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.cohort import Halted
from edgewise.drivers.http.service import Service
from edgewise.engine.ports import Evaluator
from edgewise.plan.facts import parse

LOG = logging.getLogger("edgewise")
LOOK_S = 0.5
FULL_S = 2.0  # wait before writing to a full disk again; it doubles up to LONGEST_FULL_S
LONGEST_FULL_S = 60.0
WAITS = {  # errors of disk, database and object store that end by themselves, and what ends them
    "E-DISK": "Make room or give write permission",
    "E-RUN-EXISTS": "End the other program that holds it",
    "E-DATABASE": "Look at the database server",
    "E-STORE-CONNECT": "Look at the object store",
    "E-STORE-ACCESS": "Renew the credentials or their policy",
}
RESUME = "mend the package, install it everywhere, and submit the recipe again."


class Hosting:
    """The runs of a service, and the threads that play them.

    Args:
        tell: called with a run's id and each of its events, from the run's thread.
        evaluator: measures the models of all runs on text of this machine. None: nothing is measured here.
        turn: tells whether a run may play its next round now. It is called again while it says no, so it should wait a
            little before it does.
        gateway: the second server of runs with shared sums. None: there is none.
    """

    def __init__(
        self,
        service: Service,
        tell: Tell = lambda run, event: None,
        evaluator: Evaluator | None = None,
        turn: Callable[[str], bool] = lambda run: True,
        gateway: sharing.Address | None = None,
    ) -> None:
        self._service, self._evaluator = service, evaluator
        self._turn, self._gateway = turn, gateway
        self._player = Player(service, tell, evaluator, gateway, self._halted, self._rests)
        self._closing, self._lock, self._asking = Event(), Lock(), Lock()
        self._leader = Thread(target=self._lead, name="edgewise-leader", daemon=True)
        self._threads: dict[str, Thread] = {}
        self._states: dict[str, str] = {}  # the wanted state of each run with a thread
        self._waiting: dict[str, str | None] = {}  # the reason why each run waits
        self._noted: dict[str, str | None] = {}  # the reasons that the database has

    def start(self) -> None:
        """Continue all runs that were running when the server stopped. Remove the rest of a submission that it was
        in, and the mail of runs that were cancelled without a server to remove it.

        Where servers share a database, the one with the lease plays the runs, from the time when it gets the lease.
        """
        if self._service.database.shared:
            self._leader.start()
            return
        submission.clean(self._service)
        with self._service.database.read() as c:
            running, cancelled = served.listed(c, served.RUNNING), served.unwithdrawn(c)
        for gone in sorted(cancelled):
            try:
                self._withdraw(gone)
            except StoreError as e:  # A full disk must not keep the server down. Its next start tries again.
                LOG.warning("the mail of the cancelled run %.12s stays for now: %s", gone, e)
        for run in running:
            self._begin(run)

    def _lead(self) -> None:
        """Try to get and keep the lease, and bring the runs into the states that were asked for at any server."""
        database, led = self._service.database, False
        while not self._closing.wait(LOOK_S):
            try:
                leads = database.coordinate()
                with database.read() as c:
                    rows, cancelled = (served.listed(c), served.unwithdrawn(c)) if leads else ([], set[str]())
                if leads and not led:
                    LOG.info("this server plays the runs now (lease %d)", database.number)
                    submission.clean(self._service, submission.ABANDONED_S)
                led = leads
                for row in rows:
                    self._follow(row, row.run in cancelled)
            except EdgewiseError as e:
                LOG.warning("the runs cannot be looked at: %s", e)

    def _follow(self, row: ServedRun, withdraw: bool) -> None:
        """Begin a run that is running, or stop one as somebody asked. ``withdraw``: it is cancelled and has mail."""
        with self._lock:
            thread, wanted = self._threads.get(row.run), self._states.get(row.run)
        if row.state == served.RUNNING:
            if thread is None or wanted != row.state:
                self._begin(row)
        elif thread is not None and (wanted == served.RUNNING or row.state == served.CANCELLED):
            self._states[row.run] = row.state
        if withdraw:
            self._end(row.run, thread)

    def submit(self, wanted: Submission, made_by: str) -> ServedRun:
        """Make a run and begin to play it. Raises as ``submission.begin``."""
        run = submission.begin(self._service, wanted, made_by, self._evaluator is not None, self._gateway)
        if self._service.database.leads:
            self._begin(run)
        return run

    def ask(self, run: str, state: str, by: str = BY_SERVER) -> ServedRun:
        """Pause a run after its round, cancel it at once, or continue it. Raises TransportError as ``served.ask``.

        ``by``: the member who asks, for the audit log.
        """
        now_s = self._service.now_s()

        def change(c: submission.Connection) -> ServedRun:
            if by != BY_SERVER:
                current_member(c, by)
            audit.note(c, by, state, run, now_s)
            return served.ask(c, run, state)

        with self._asking:  # Database and memory must see two simultaneous requests in one order.
            found = self._service.database.write(change)
            if not self._service.database.leads:
                return found  # The server with the lease follows.
            with self._lock:
                self._states[run] = state
                thread = self._threads.get(run)
        if state == served.RUNNING:
            self._begin(found)
        elif state == served.CANCELLED:
            self._end(run, thread)
        return found

    def _end(self, run: str, thread: Thread | None) -> None:
        """Stop the thread of a cancelled run, and remove its mail."""
        self._service.delivered()  # This wakes the threads that wait for frames.
        if thread is not None:
            thread.join()
        self._withdraw(run)
        self._service.ring(run)

    def why(self, run: ServedRun) -> str | None:
        """Return the reason why a run failed or waits. None without one.

        It is known here even if a full disk keeps it out of the database.
        """
        return self._waiting.get(run.run, run.why) if run.state == served.RUNNING else run.why

    def wait(self, run: str, timeout_s: float | None = None) -> None:
        """Wait until a run is no longer played."""
        thread = self._threads.get(run)
        if thread is not None:
            thread.join(timeout_s)

    def close(self) -> None:
        """Stop playing. All runs stay where they are."""
        self._closing.set()
        self._service.delivered()
        for thread in [*self._threads.values(), *([self._leader] if self._leader.is_alive() else [])]:
            thread.join()

    def _begin(self, run: ServedRun) -> None:
        with self._lock:
            self._states[run.run] = served.RUNNING
            self._waiting.pop(run.run, None)
            self._noted.pop(run.run, None)  # The reason in the database is stale.
            if run.run not in self._threads:
                thread = Thread(target=self._play, args=(run,), name=f"edgewise-run-{run.run[:8]}", daemon=True)
                self._threads[run.run] = thread
                thread.start()

    def _halted(self, run: str) -> bool:
        return not self._leads() or self._states[run] == served.CANCELLED

    def _paused(self, run: str) -> bool:
        return not self._leads() or self._states[run] != served.RUNNING

    def _leads(self) -> bool:
        return self._service.database.leads and not self._closing.is_set()

    def _rests(self, run: str, devices: Collection[DeviceId], least: int) -> bool:
        """Wait until enough of the run's devices are present and it is the run's turn.

        A round that begins without them ends at its deadline with nothing, and still counts as played.
        Returns whether the run pauses now.
        """
        while not self._paused(run):
            here = self._service.present(devices)
            self._says(run, None if here >= least else f"waits for devices: {here} of at least {least} are here")
            if here < least:
                time.sleep(LOOK_S)
            elif self._turn(run):  # It comes last, because a turn may be for one round only.
                return self._paused(run)
        return True

    def _says(self, run: str, why: str | None) -> None:
        """Record why a running run waits."""
        self._waiting[run] = why
        if run not in self._noted or self._noted[run] != why:
            with suppress(StoreError):  # On a full disk it is recorded later.
                self._service.database.write(lambda c: served.explain(c, run, why), fenced=True)
                self._noted[run] = why

    def _waits_for_room(self, run: str, why: str, tried: int) -> None:
        """Wait until the disk may have room again. The next attempt shows whether it has."""
        limits, until_s = self._service.limits, time.monotonic() + min(FULL_S * 2**tried, LONGEST_FULL_S)
        while not self._paused(run):
            self._says(run, why)
            if time.monotonic() >= until_s and self._service.free_bytes() >= limits.reserve_bytes:
                self._says(run, None)
                return
            time.sleep(LOOK_S)

    def _play(self, run: ServedRun) -> None:
        full = 0  # consecutive attempts that met a full disk
        while True:
            full_before, full = full, 0
            try:
                self._attempt(run)
            except EdgewiseError as e:
                full = full_before + 1
                LOG.warning("run %.12s waits: %s", run.run, e)
                why = f"{e.code}: {e.what} {WAITS[e.code]}; the run then goes on by itself."
                self._waits_for_room(run.run, why, full_before)
            except Halted:
                if not self._service.database.leads:
                    time.sleep(LOOK_S)  # Another server plays it, or this one leads again soon.
            with self._lock:  # Someone may just have resumed it.
                if self._ends(run.run):
                    del self._threads[run.run]
                    return

    def _ends(self, run: str) -> bool:
        if self._paused(run):
            return True
        with suppress(StoreError), self._service.database.read() as c:
            return served.find(c, run).state != served.RUNNING
        return False

    def _attempt(self, run: ServedRun) -> None:
        """Play a run until it ends, fails, or is paused. Raises Halted, and StoreError of a code in ``WAITS``."""
        try:
            if self._player.play(run):
                self._ended(run.run, served.FINISHED, None)
        except EdgewiseError as e:
            if e.code in WAITS:
                raise
            if e.code == "E-LEASE" and self._service.database.shared:
                raise Halted from None  # The other server plays it.
            LOG.warning("run %.12s stopped: %s", run.run, e)
            self._ended(run.run, served.FAILED, f"{e.code}: {e.what} {e.fix}")
        except Halted:
            raise
        except Exception as e:  # boundary: one run that breaks must not end the server
            LOG.exception("run %.12s broke", run.run)
            fault = fault_of(e, extension_packages.modules(parse(run.facts).packages))
            why = f"crash: {type(e).__name__}" if fault is None else f"{fault.code}: {fault.what} {RESUME}"
            self._ended(run.run, served.FAILED, why)

    def _ended(self, run: str, state: str, why: str | None) -> None:
        """Record how a run ended. Raises StoreError(E-DISK) if the disk is full."""
        try:
            self._service.database.write(lambda c: served.ended(c, run, state, why), fenced=True)
        except StoreError as e:
            if e.code in ("E-DISK", "E-DATABASE"):
                raise
        self._states[run] = state  # While the server closes, the run continues at the next start.
        self._service.ring(run)

    def _withdraw(self, run: str) -> None:
        """Remove the mail and the blobs of a run."""
        service = self._service

        def change(c: submission.Connection) -> list[str]:
            gone = mailboxes.close(c, run)
            mailboxes.publish(c, run, {})
            return gone

        service.drop_chunks(service.database.write(change))
        service.sweep_blobs()
        service.database.scrub()
