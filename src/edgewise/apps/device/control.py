"""Orders from the owner to the agent of a home folder, and the agent's state.

    HOME/order.json     pause, with or without an end, or leave; absent: work
    HOME/agent.json     the agent's work, and the reason for it
    HOME/agent.lock     held by the agent as long as it runs

    with Agent(home) as agent:                 # E-RUN-EXISTS if another one works there
        while not (order := agent.order()).leave:
            agent.say("waiting", "quiet hours until 06:30")

An agent reads its order before it sends anything, and between the pieces of what it sends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from edgewise.core.errors import EdgewiseError, Interrupted, StoreError
from edgewise.drivers.storage import files

ORDER, SAYS, LOCK = "order.json", "agent.json", "agent.lock"
LOG = logging.getLogger("edgewise")
POLL_S = 0.5  # interval at which a waiting agent reads its order
LOOK_S = 0.2  # interval at which a sending agent reads its order
GLANCES, GLANCE_S = 5, 0.05
Word = Literal["work", "pause", "leave"]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order from the owner.

    ``until_s`` is the end of a pause in seconds since 1970. None: `edgewise device resume` ends the pause.
    """

    word: Word = "work"
    until_s: float | None = None

    @property
    def pause(self) -> bool:
        """True while the agent may send nothing."""
        return self.word == "pause"

    @property
    def leave(self) -> bool:
        """True if the agent ends for good."""
        return self.word == "leave"


class Said(msgspec.Struct, frozen=True):
    """The agent's latest state.

    Attributes:
        state: one word, such as waiting, training, sending.
        why: a sentence. None where the state says it all.
        since_s: seconds since 1970.
        pid: the agent's process, which a signal may end. 0 if the process does other work too, as a script or a
            notebook.
    """

    state: str
    why: str | None
    since_s: float
    pid: int


def read_owner_order(home: Path, now_s: float) -> Order:
    """Read the order that holds now. An unreadable file counts as a pause, so that nothing is sent by mistake."""
    try:
        found = msgspec.json.decode((home / ORDER).read_bytes(), type=Order)
    except FileNotFoundError:
        return Order()
    except (OSError, msgspec.DecodeError):
        return Order("pause")
    return Order() if found.pause and found.until_s is not None and now_s >= found.until_s else found


def give_owner_order(home: Path, wanted: Order) -> None:
    """Give an order. It is on the disk when this returns. Raises StoreError(E-DISK)."""
    if wanted.word == "work":
        files.discard(home / ORDER)
    else:
        files.write_durably(home / ORDER, msgspec.json.encode(wanted), owner_only=True)
    files.sync_folder(home)


class Agent:
    """The one process that works for a home folder. It is a context manager.

    Raises StoreError: E-RUN-EXISTS while another process works there, E-DISK.
    """

    def __init__(self, home: Path, now_s: Callable[[], float] = time.time) -> None:
        self._home, self._now_s = home, now_s
        self._release = _locked(home / LOCK)
        alone = threading.current_thread() is threading.main_thread()
        self._pid = os.getpid() if alone else 0
        self._said: tuple[str, str | None] | None = None
        self._order, self._looked_s = Order(), float("-inf")

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder to other processes."""
        files.discard(self._home / SAYS)
        self._release()

    def order(self) -> Order:
        """Read the owner's present order."""
        return read_owner_order(self._home, self._now_s())

    def open(self) -> bool:
        """Tell ``drivers.http.link.Link`` whether anything may be sent now. The files are read a few times a second.

        Raises Interrupted(E-INTERRUPTED) if the owner leaves.
        """
        now = time.monotonic()
        if now - self._looked_s >= LOOK_S:
            self._order, self._looked_s = self.order(), now
        if self._order.leave:
            raise Interrupted(
                "E-INTERRUPTED", "the owner leaves this server.", "nothing more is sent from this device."
            )
        return not self._order.pause

    def say(self, state: str, why: str | None = None) -> None:
        """Write the agent's state and the reason for it. An unchanged state is not written again.

        On a full disk it is written over the last one. Where that fails too, the log has it.
        """
        if self._said != (state, why):
            report = msgspec.json.encode(Said(state, why, self._now_s(), self._pid))
            try:
                files.replace_file(self._home / SAYS, report)
            except StoreError as e:
                if not _overwritten(self._home / SAYS, report):
                    LOG.warning("the state %s is not written: %s", state, e)
                    return
            self._said = (state, why)

    def troubled(self, error: EdgewiseError) -> None:
        """Write the trouble that keeps a waiting agent from its server."""
        if self._said is not None and self._said[0] == "waiting":
            self.say("waiting", f"{error.code}: {error.what}")


def _overwritten(path: Path, raw: bytes) -> bool:
    """Write a small file over an older one, which needs no room on a full disk. Returns whether that went well."""
    try:
        with open(path, "r+b") as f:
            f.write(raw)
            f.truncate()
        return True
    except OSError:
        return False


def _locked(path: Path) -> Callable[[], None]:
    """Take the lock. `edgewise device status` may hold it for a moment (``running_agent``)."""
    for _ in range(GLANCES):
        with suppress(StoreError):
            return files.lock(path)
        time.sleep(GLANCE_S)
    return files.lock(path)


def running_agent(home: Path) -> Said | None:
    """Read the state of a home folder's agent. None: no agent runs."""
    if not (home / LOCK).exists():
        return None
    try:
        files.lock(home / LOCK)()
    except StoreError:
        with suppress(OSError, msgspec.DecodeError):
            return msgspec.json.decode((home / SAYS).read_bytes(), type=Said)
        return Said("starting", None, time.time(), 0)
    return None


def wait_for_agent_end(home: Path, within_s: float, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Wait for the agent's end, at most that long. Returns whether no agent runs."""
    left_s = within_s
    while running_agent(home) is not None:
        if left_s <= 0.0:
            return False
        sleep(POLL_S)
        left_s -= POLL_S
    return True
