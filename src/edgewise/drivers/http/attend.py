"""The loop of a working device: take mail, download what an invitation names, answer, and send the answer.

    attend(link, part, until=stopping.is_set)

The state that must last is on the disk before a frame leaves (``drivers.workers.devices``). After a crash the device
takes the mail of the open rounds again. Where its answer then has other bytes than before, the server keeps the first
answer.

Where the device's disk is full, the device waits with growing pauses, and takes the same mail again. A frame that was
made before stays in memory until its line in the owner's record is on the disk.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from edgewise.core import frame
from edgewise.core.errors import DecodeError, EdgewiseError, Interrupted, StoreError, TrainingError, TransportError
from edgewise.core.own_code import type_and_line
from edgewise.drivers.http import signatures
from edgewise.drivers.http.link import FRAME_BYTES, WAIT_S, Link, Mail
from edgewise.drivers.storage.files import discard
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine import broadcast

TOUCH_S = 20.0  # seconds between two calls of a training device, far below the silence that costs its place
LOG = logging.getLogger("edgewise")
FIRST_S, LONGEST_S = 1.0, 60.0  # pauses of a device whose disk is full
_OVER = ("E-CLOSED", "E-OUTDATED", "E-CONFLICT", "E-BLOB", "E-OWNER")  # the round continues without this device


@dataclass(frozen=True)
class RunPart:
    """The parts that a device needs to join a run.

    ``downloads``: those of ``devices``. ``blobs``: a folder for downloaded blobs.
    """

    devices: Devices
    downloads: Downloads
    blobs: Path


class Watch:
    """Hooks by which a device's owner sees its work and decides about it. This one decides nothing."""

    def doing(self, state: str, run: str | None = None) -> None:
        """Report the device's activity: waiting, joining, training, answering, sending."""

    def declines(self, part: RunPart, round: int) -> str | None:
        """Return the reason why the device takes no part in a round now. None where it takes part."""
        return None

    def leaving(self, part: RunPart | None, frame: bytes) -> None:
        """Report a frame that is about to leave. ``part`` is None where the device refuses the whole run.

        Raises TransportError(E-OWNER) where the owner does not let it leave.
        """

    def refused(self, run: str, error: EdgewiseError) -> None:
        """Report that the device takes no part in a run."""

    def disk_full(self, error: StoreError, wait_s: float) -> None:
        """Report that the disk is full, and wait that long."""
        time.sleep(wait_s)

    def idle(self) -> None:
        """Report that a poll brought no mail. The device has time for work of its own."""


def attend(
    link: Link,
    part: Callable[[str], RunPart],
    until: Callable[[], bool],
    wait_s: float = WAIT_S,
    watch: Watch = Watch(),  # noqa: B008 (it has no state)
) -> None:
    """Answer mail until ``until()`` is true. It is called between two frames and may take its time.

    Args:
        part: run -> this device's part in it. Where it raises an EdgewiseError, the device refuses the invitation with
            the error's code.
        wait_s: duration of one poll.
        watch: hooks for the owner.
    Raises:
        TransportError: E-REVOKED, E-CONNECT, and other errors for which the link gives up. E-OLDER where the folder is
            an older copy: nothing leaves until the device is enrolled anew.
        StoreError: where the device's state cannot be read. A full disk (E-DISK) is waited for.
    Guarantees: a frame that no server sends gets no answer, and does not end the device.
    """
    last_number, pauses = 0, _Pauses(watch)
    while not until():
        try:
            watch.doing("waiting")
            link.frames.recall()
            mail = link.poll(last_number, wait_s)
            if mail is None:
                watch.idle()
            else:
                _handle(link, part, mail, watch)
                last_number = mail.number
        except StoreError as e:
            pauses.after(e)
        else:
            pauses = _Pauses(watch)


class _Pauses:
    """Growing pauses of random length while the disk is full."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._longest_s = watch, FIRST_S

    def after(self, error: StoreError) -> None:
        """Wait. Raises other errors than E-DISK."""
        if error.code != "E-DISK":
            raise error
        LOG.warning("the disk of this device is full; trying again: %s", error)
        self._watch.disk_full(error, self._longest_s * (1 + secrets.randbelow(1000) / 1000) / 2)
        self._longest_s = min(2 * self._longest_s, LONGEST_S)


def _handle(link: Link, part: Callable[[str], RunPart], mail: Mail, watch: Watch) -> None:
    """Answer mail. A round that went on without this device, and a frame that no server sends, are only logged."""
    try:
        _answer(link, part, mail, watch)
    except TransportError as e:
        if e.code not in _OVER:
            raise
        LOG.info("no part in a round: %s", e)
    except DecodeError as e:
        LOG.warning("a frame of the server is left alone: %s", e)


def _answer(link: Link, part: Callable[[str], RunPart], mail: Mail, watch: Watch) -> None:
    came_s = time.monotonic()
    message = frame.from_server(mail.raw, FRAME_BYTES)
    if not signatures.RUN.fullmatch(message.run):  # it becomes part of a path and of a header, and of lines for people
        raise DecodeError("E-FRAME", "the frame names a run as no server does.")
    if isinstance(message, frame.Probe):
        LOG.warning("the server asks for a loss of this device alone; it is not answered")
        return
    try:
        watch.doing("joining", message.run)
        with _in_touch(link), _named():
            own_part = part(message.run)
    except (StoreError, TransportError, Interrupted):
        raise
    except EdgewiseError as e:
        LOG.warning("no part in run %.12s: %s", message.run, e)
        watch.refused(message.run, e)
        _refuse(link, message, e.code, watch)
        return
    if isinstance(message, frame.Invite) and (why := watch.declines(own_part, message.round)) is not None:
        LOG.info("no part in round %d of run %.12s: %s", message.round, message.run, why)
        watch.refused(message.run, TransportError("E-OWNER", why))
        _refuse(link, message, "E-OWNER", watch)
        return
    if isinstance(message, frame.Invite):
        wanted, remaining_bytes = (
            own_part.devices.wanted(link.name, message),
            broadcast.most_bytes(own_part.devices.plan),
        )
        for digest in wanted:
            blob = link.download(digest, own_part.blobs, remaining_bytes).read_bytes()
            remaining_bytes -= len(blob)
            own_part.downloads.put(digest, blob, keep=wanted)
        if wanted:
            _tidy(own_part.blobs, wanted)
    watch.doing("training" if isinstance(message, frame.Invite) else "answering", message.run)
    try:
        with _in_touch(link), _named():
            answer = own_part.devices.answer(link.name, mail.raw, lambda: time.monotonic() - came_s, link.speed.up_mbit)
    except TrainingError as e:
        watch.refused(message.run, e)
        _refuse(link, message, e.code, watch)
        return
    if answer.frame is not None:
        watch.doing("sending", message.run)
        try:
            _leave(link, message, own_part, answer.frame, watch)
        except TransportError as e:
            if e.code != "E-OWNER":
                raise
            LOG.info("no part in round %d of run %.12s: %s", message.round, message.run, e)
            watch.refused(message.run, e)
            _refuse(link, message, "E-OWNER", watch)


def _refuse(link: Link, message: frame.FromServer, code: str, watch: Watch) -> None:
    """Refuse an invitation. Other frames get no answer."""
    if isinstance(message, frame.Invite):
        # Only the code is sent, because an error's text may name files of this device.
        refusal = frame.dump(
            frame.Refusal(run=message.run, round=message.round, device=link.name, code=code, reason="")
        )
        _leave(link, message, None, refusal, watch)


def _leave(link: Link, message: frame.FromServer, part: RunPart | None, raw: bytes, watch: Watch) -> None:
    """Send a frame once the owner's record has it."""
    pauses = _Pauses(watch)
    while True:
        try:
            watch.leaving(part, raw)
            break
        except StoreError as e:
            pauses.after(e)
    link.send(message.run, message.round, raw)


@contextmanager
def _named() -> Iterator[None]:
    """Turn an error of a model's files or an owner's codec into an edgewise error, which costs a round and not the
    agent.
    """
    try:
        yield
    except EdgewiseError:
        raise
    except Exception as e:  # boundary: foreign code
        LOG.warning("no part in a round", exc_info=e)
        fix = "correct that code. The log has the traceback."
        raise TrainingError("E-TRAIN", f"code of this device failed: {type_and_line(e)}.", fix) from e


@contextmanager
def _in_touch(link: Link) -> Iterator[None]:
    """Call the server while this device trains, so that it keeps its place however long the training takes."""
    over = Event()

    def call() -> None:
        while not over.wait(TOUCH_S):
            try:
                link.standing()
            except (TransportError, Interrupted) as e:
                LOG.info("out of touch with the server: %s", e)

    thread = Thread(target=call, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()  # nobody waits for the thread, because its call may try again for a long time


def _tidy(blobs: Path, keep: Collection[str]) -> None:
    """Remove the blobs of older invitations."""
    for path in blobs.glob("*"):
        if path.name not in keep:
            discard(path)
