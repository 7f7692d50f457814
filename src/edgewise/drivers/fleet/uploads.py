"""Uploads in chunks. A frame that is too large for one request comes in pieces, and each piece is durable by itself.

The server names the bytes that it has (``received``), and the device continues from there. So after a failure of either
side at most one chunk is sent again. Chunks are sealed (``spool``). Functions of a connection; see ``database``.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, spool
from edgewise.drivers.fleet.tables import MAIL, UPLOADS

CHUNK_BYTES = 2**22
OPEN = 64  # the largest number of one device's open uploads


@dataclass(frozen=True, slots=True)
class Upload:
    """An unfinished or unused upload of a frame.

    Attributes:
        digest: SHA-256 of the whole frame.
        received: number of durable bytes here, from byte 0.
    """

    id: str
    device: str
    run: str
    round: int
    digest: bytes = field(repr=False)
    size: int
    chunk: int
    received: int


@dataclass(frozen=True, slots=True)
class Room:
    """Limits in bytes: of one frame, and of all open uploads together."""

    frame: int
    spool: int


def begin(
    c: sa.Connection, device: str, run: str, round: int, digest: bytes, size: int, room: Room, now_s: float
) -> Upload:
    """Begin an upload, or find the one that was begun for the same bytes.

    Raises:
        TransportError: E-CLOSED, E-OUTDATED as ``mailboxes.invited``. E-QUOTA where the frame is too large or the
            device has too much open. E-BUSY where all devices together have too much open.
    """
    mailboxes.invited(c, run, round, device)
    own_uploads = sa.select(UPLOADS).where(UPLOADS.c.device == device)
    row = c.execute(
        own_uploads.where(UPLOADS.c.run == run, UPLOADS.c.round == round, UPLOADS.c.digest == digest)
    ).first()
    if row is None:
        if not 0 < size <= room.frame:
            what = f"the frame has {size} bytes, and a frame may have {room.frame}."
            raise TransportError("E-QUOTA", what, "send less (a smaller rung, fewer segments).")
        if (c.execute(sa.select(sa.func.count()).where(UPLOADS.c.device == device)).scalar() or 0) >= OPEN:
            raise TransportError("E-QUOTA", f"this device has {OPEN} uploads open.", "send those that are begun.")
        mailboxes.check_room(c, device, size)
        if (c.execute(sa.select(sa.func.sum(UPLOADS.c.size))).scalar() or 0) + size > room.spool:
            raise TransportError(
                "E-BUSY", "the server's disk quota for uploads is used up.", "wait for the round's end."
            )
        id = secrets.token_hex(16)
        values = {"device": device, "run": run, "round": round, "digest": digest, "size": size}
        c.execute(UPLOADS.insert().values(id=id, **values, chunk=CHUNK_BYTES, received=0, made_s=now_s))
        return find(c, id, device)
    return _upload(row)


def find(c: sa.Connection, id: str, device: str) -> Upload:
    """Find a device's resumable upload.

    Raises:
        TransportError: E-UNKNOWN-ID, also for an upload of another device.
    """
    row = c.execute(sa.select(UPLOADS).where(UPLOADS.c.id == id, UPLOADS.c.device == device)).first()
    if row is None:
        raise TransportError("E-UNKNOWN-ID", "this device has no such upload open.", "begin it anew.")
    return _upload(row)


def check_chunk(upload: Upload, offset: int, size: int) -> None:
    """Refuse a chunk at a wrong place or of a wrong size.

    Raises:
        TransportError: E-OFFSET where the chunk does not begin at ``received``. E-QUOTA where its size is not ``chunk``
            (for the last one: the rest).
    """
    if offset != upload.received:
        what = f"the chunk begins at byte {offset}, but the server has {upload.received} bytes."
        raise TransportError("E-OFFSET", what, "ask how much it has, and continue from there.")
    if size != min(upload.chunk, upload.size - offset) or size == 0:
        what = f"the chunk has {size} bytes. Chunks have {upload.chunk}, and the last one has the rest."
        raise TransportError("E-QUOTA", what, "cut the frame into chunks of that size.")


def advance(c: sa.Connection, upload: Upload, size: int) -> int:
    """Note that the chunk after ``received`` is durable. Return the new number of received bytes.

    Raises:
        TransportError: E-UNKNOWN-ID where the round has closed in the meantime. E-OFFSET where another request was
            first.
    """
    here = (UPLOADS.c.id == upload.id) & (UPLOADS.c.received == upload.received)
    if not c.execute(UPLOADS.update().where(here).values(received=upload.received + size)).rowcount:
        check_chunk(find(c, upload.id, upload.device), upload.received, size)
    return upload.received + size


def assembled(upload: Upload, key: bytes, chunks: spool.Chunks) -> memoryview:
    """Join the chunks of a complete upload to the frame.

    Raises:
        TransportError: E-OFFSET where chunks are missing. E-BLOB where the bytes are not those that were announced.
    """
    if upload.received != upload.size:
        what = f"{upload.received} of {upload.size} bytes have come."
        raise TransportError("E-OFFSET", what, "send the rest first.")
    raw = chunks.whole(key, upload.id, -(-upload.size // upload.chunk))
    if hashlib.sha256(raw).digest() != upload.digest:
        raise TransportError("E-BLOB", "the uploaded bytes are not those announced.", "begin the upload again.")
    return raw


def abandon(c: sa.Connection, id: str) -> bool:
    """Forget an upload, unless an accepted frame lies in it. Return whether it is forgotten."""
    accepted = sa.exists().where(MAIL.c.upload == id)
    return bool(c.execute(UPLOADS.delete().where(UPLOADS.c.id == id, sa.not_(accepted))).rowcount)


def in_use(c: sa.Connection) -> set[str]:
    """List the ids of all resumable uploads."""
    return {str(row[0]) for row in c.execute(sa.select(UPLOADS.c.id))}


def _upload(row: sa.Row[tuple[object, ...]]) -> Upload:
    values = row._asdict()
    del values["made_s"]
    return Upload(**values)
