"""A device at work: it takes its mail, downloads what an invitation names, answers, and sends the answer.

    attend(link, part, until=stopping.is_set)

What is kept of its state is on the disk before a frame leaves (``drivers.workers.devices``). After a crash it takes
the mail of the open rounds again. Where it then answers with other bytes than before, the server keeps the first
answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from edgewise.core import frame
from edgewise.core.errors import EdgewiseError, Interrupted, StoreError, TrainingError, TransportError
from edgewise.core.own_code import type_and_line
from edgewise.drivers.http.link import WAIT_S, Link, Mail
from edgewise.drivers.storage.files import discard
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine import broadcast

TOUCH_S = 20.0  # between two calls of a device that trains; far below the silence that costs its place
FRAME_BYTES = 2**26  # of a frame from a server, whatever run it is of
LOG = logging.getLogger("edgewise")
_OVER = ("E-CLOSED", "E-CONFLICT", "E-BLOB")  # the round went on without this device


@dataclass(frozen=True)
class Part:
    """What a device needs to take part in a run. ``downloads``: those of ``devices``; ``blobs``: a folder for what is
    downloaded."""

    devices: Devices
    downloads: Downloads
    blobs: Path


class Watch:
    """What a device's owner sees and decides while it works; this one decides nothing."""

    def doing(self, state: str, run: str = "") -> None:
        """The device begins to do this: waiting, joining, training, answering, sending."""

    def declines(self, part: Part) -> str:
        """Why the device takes no part in a round now; empty where it does."""
        return ""

    def leaving(self, part: Part | None, frame: bytes) -> None:
        """A frame is about to leave; ``part`` is None where the device refuses the whole run."""

    def refused(self, run: str, error: EdgewiseError) -> None:
        """The device takes no part in a run."""


def attend(
    link: Link,
    part: Callable[[str], Part],
    until: Callable[[], bool],
    wait_s: float = WAIT_S,
    watch: Watch = Watch(),  # noqa: B008 (it has no state)
) -> None:
    """Answer mail until ``until()`` is true, which is asked between two frames, and may take its time.

    Args:
        part: run -> this device's part in it. An EdgewiseError that it raises is the answer to an invitation: the
            device refuses it with the error's code. wait_s: how long one poll lasts.
    Raises:
        TransportError: E-REVOKED, E-CONNECT and what else the link gives up with. DecodeError for a frame that no
        server sends. StoreError where the device's state cannot be read or kept.
    """
    after = 0
    while not until():
        watch.doing("waiting")
        mail = link.poll(after, wait_s)
        if mail is not None:
            try:
                _answer(link, part, mail, watch)
            except TransportError as e:
                if e.code not in _OVER:
                    raise
                LOG.info("no part in a round: %s", e)
            after = mail.number


def _answer(link: Link, part: Callable[[str], Part], mail: Mail, watch: Watch) -> None:
    came_s = time.monotonic()
    message = frame.from_server(mail.raw, FRAME_BYTES)
    if isinstance(message, frame.Probe):
        LOG.warning("the server asks for a loss of this device alone; it is not answered")
        return
    try:
        watch.doing("joining", message.run)
        with _in_touch(link), _named():
            mine = part(message.run)
    except (StoreError, TransportError, Interrupted):
        raise
    except EdgewiseError as e:
        LOG.warning("no part in run %.12s: %s", message.run, e)
        watch.refused(message.run, e)
        _refuse(link, message, e.code, watch)
        return
    if isinstance(message, frame.Invite) and (why := watch.declines(mine)):
        LOG.info("no part in round %d of run %.12s: %s", message.round, message.run, why)
        watch.refused(message.run, TransportError("E-OWNER", why))
        _refuse(link, message, "E-OWNER", watch)
        return
    if isinstance(message, frame.Invite):
        wanted, left = mine.devices.wanted(link.name, message), broadcast.most_bytes(mine.devices.plan)
        for digest in wanted:
            blob = link.download(digest, mine.blobs, left).read_bytes()
            left -= len(blob)
            mine.downloads.put(digest, blob, keep=wanted)
        if wanted:
            _tidy(mine.blobs, wanted)
    watch.doing("training" if isinstance(message, frame.Invite) else "answering", message.run)
    try:
        with _in_touch(link), _named():
            answer = mine.devices.answer(link.name, mail.raw, lambda: time.monotonic() - came_s, link.speed.up_mbit)
    except TrainingError as e:
        watch.refused(message.run, e)
        _refuse(link, message, e.code, watch)
        return
    if answer.frame is not None:
        watch.doing("sending", message.run)
        watch.leaving(mine, answer.frame)
        link.send(message.run, message.round, answer.frame)


def _refuse(link: Link, message: frame.FromServer, code: str, watch: Watch) -> None:
    """Refuse an invitation; other frames are left alone."""
    if isinstance(message, frame.Invite):
        # The code alone: what an error says may name files of this device.
        no = frame.dump(frame.Refusal(run=message.run, round=message.round, device=link.name, code=code, reason=""))
        watch.leaving(None, no)
        link.send(message.run, message.round, no)


@contextmanager
def _named() -> Iterator[None]:
    """Make an error of whatever a model's files or an owner's codec raise: it costs a round, and not the agent."""
    try:
        yield
    except EdgewiseError:
        raise
    except Exception as e:  # boundary: foreign code
        LOG.warning("no part in a round", exc_info=e)
        fix = "see the log for the whole traceback, and mend it there."
        raise TrainingError("E-TRAIN", f"code of this device failed: {type_and_line(e)}.", fix) from e


@contextmanager
def _in_touch(link: Link) -> Iterator[None]:
    """Call the server while this device trains, so that it keeps its place, however long that takes."""
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
        over.set()  # the thread is not waited for: it may be in the middle of a call that tries for long


def _tidy(blobs: Path, keep: Collection[str]) -> None:
    """Remove what older invitations named."""
    for path in blobs.glob("*"):
        if path.name not in keep:
            discard(path)
