"""A device at work: it takes its mail, downloads what an invitation names, answers, and sends the answer.

    attend(link, devices, downloads, home / "blobs", until=stopping.is_set)

What is kept of its state is on the disk before a frame leaves (``drivers.devices``). After a crash it takes the mail of
the open rounds again. Where it then answers with other bytes than before, the server keeps the first answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from edgewise.core import frame
from edgewise.core.errors import TransportError
from edgewise.drivers.devices import Devices
from edgewise.drivers.files import discard
from edgewise.drivers.following import Downloads
from edgewise.drivers.http.link import WAIT_S, Link, Mail
from edgewise.engine.broadcast import downloads as named

TOUCH_S = 20.0  # between two calls of a device that trains; far below the silence that costs its place
LOG = logging.getLogger("edgewise")
_OVER = ("E-CLOSED", "E-CONFLICT", "E-BLOB")  # the round went on without this device


def attend(
    link: Link, devices: Devices, downloads: Downloads, blobs: Path, until: Callable[[], bool], wait_s: float = WAIT_S
) -> None:
    """Answer mail until ``until()`` is true, which is asked between two frames.

    Args:
        downloads: those of ``devices``. blobs: a folder for what is downloaded. wait_s: how long one poll lasts.
    Raises:
        TransportError: E-REVOKED, E-CONNECT and what else the link gives up with. DecodeError for a frame that no
        server sends. StoreError where the device's state cannot be read or kept.
    """
    after = 0
    while not until():
        mail = link.poll(after, wait_s)
        if mail is not None:
            try:
                _answer(link, devices, downloads, blobs, mail)
            except TransportError as e:
                if e.code not in _OVER:
                    raise
                LOG.info("no part in a round: %s", e)
            after = mail.number


def _answer(link: Link, devices: Devices, downloads: Downloads, blobs: Path, mail: Mail) -> None:
    message = frame.from_server(mail.raw, devices.plan.frame_limit_bytes)
    if isinstance(message, frame.Probe):
        LOG.warning("the server asks for a loss of this device alone; it is not answered")
        return
    if isinstance(message, frame.Invite):
        wanted = named(message)
        for digest in wanted:
            downloads.put(digest, link.download(digest, blobs).read_bytes(), keep=wanted)
        _tidy(blobs, wanted)
    with _in_touch(link):
        answer = devices.answer(link.name, mail.raw)
    if answer.frame is not None:
        link.send(message.run, message.round, answer.frame)


@contextmanager
def _in_touch(link: Link) -> Iterator[None]:
    """Call the server while this device trains, so that it keeps its place, however long that takes."""
    over = Event()

    def call() -> None:
        while not over.wait(TOUCH_S):
            try:
                link.standing()
            except TransportError as e:
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
