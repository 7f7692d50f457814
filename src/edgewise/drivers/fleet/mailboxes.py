"""Mailboxes: frames to and from devices, stored until their round closes. Functions of a connection.

A round is open from the first ``post`` to ``close``. A device may answer a round for which it has mail. Each place
(run, round, device, phase) holds one frame. The same frame again is acknowledged again. Another frame in the same place
is refused when it comes from a device. Frames from devices are sealed under the round's key (``spool``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

import msgspec
import sqlalchemy as sa

from edgewise.core import frame
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import served, spool
from edgewise.drivers.fleet.tables import MAIL, PARTICIPANTS, PUBLICATIONS, ROUNDS, UPLOADS
from edgewise.drivers.storage.dialects import OptionalText, upsert
from edgewise.secagg import messages

EVERYBODY = ""  # takes the place of a run for blobs that are published to all devices

DEVICE_BYTES = 2**28  # the largest size of all frames and open uploads of a device that lie here
_STEPS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(messages.Message))
_kind: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(msgspec.defstruct("_Kind", [("type", str)]))

_NEXT = (  # built once, because every check-in asks it, and building it takes three times as long as asking
    sa.select(MAIL)
    .where(MAIL.c.device == sa.bindparam("name"), sa.not_(MAIL.c.inbound), MAIL.c.number > sa.bindparam("after"))
    .order_by(MAIL.c.number)
    .limit(1)
)

_OF_OPEN_ROUND = sa.select(MAIL.c.number).where(MAIL.c.device == sa.bindparam("name"), sa.not_(MAIL.c.inbound)).limit(1)


@dataclass(frozen=True, slots=True)
class MailboxLetter:
    """A frame in a mailbox.

    Attributes:
        number: grows with every frame.
        upload: the upload that holds the frame; None where ``body`` holds it.
        at_s: time of arrival by the server's clock.
    """

    number: int
    run: str
    round: int
    device: str
    phase: str
    size: int
    upload: str | None
    at_s: float
    body: bytes = field(repr=False)


def phase(message: frame.FromDevice | frame.FromServer) -> str:
    """Return the phase of a round to which a message belongs: ``invite``, ``contribution``, ``step-masked``, ..."""
    name = str(type(message).__struct_config__.tag)
    if not isinstance(message, frame.Step):
        return name
    try:
        step = _kind.decode(message.body).type
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return name  # the round checks the content
    return f"{name}-{step}" if step in _STEPS else name  # names of a device's choice would be places without number


def open_round(c: sa.Connection, run: str, round: int) -> bytes:
    """Return the key of a round. Opens the round where it is not open."""
    row = upsert(c, ROUNDS).values(run=run, round=round, key=spool.new_key()).on_conflict_do_nothing()
    c.execute(row)
    return round_key(c, run, round)


def round_key(c: sa.Connection, run: str, round: int) -> bytes:
    """Return the key of an open round.

    Raises:
        TransportError: E-CLOSED.
    """
    key = c.execute(sa.select(ROUNDS.c.key).where(ROUNDS.c.run == run, ROUNDS.c.round == round)).scalar()
    if key is None:
        raise TransportError("E-CLOSED", f"round {round} takes no frames any more.", "wait for the next invitation.")
    return bytes(key)


def post(c: sa.Connection, device: str, raw: bytes, message: frame.FromServer, now_s: float) -> int:
    """Put a frame into a device's inbox and open its round. Return the frame's number.

    Another frame in its place belongs to an attempt that was given up. It is replaced, and the new frame has a new
    number.
    """
    open_round(c, message.run, message.round)
    digest = hashlib.sha256(raw).digest()
    place = _place(False, message.run, message.round, device, phase(message))
    old = c.execute(sa.select(MAIL.c.number, MAIL.c.digest).where(*_at(place))).first()
    if old is not None:
        if old.digest == digest:
            return int(old.number)
        c.execute(MAIL.delete().where(MAIL.c.number == old.number))
    return _insert(c, place, digest, len(raw), None, raw, now_s)


def next_letter(c: sa.Connection, device: str, after: int) -> MailboxLetter | None:
    """Return the oldest frame in a device's inbox with a number above ``after``."""
    row = c.execute(_NEXT, {"name": device, "after": after}).first()
    return _letter(row) if row else None


def takes_part(c: sa.Connection, device: str) -> bool:
    """Return whether a device was sent a frame of a round that is open."""
    return c.execute(_OF_OPEN_ROUND, {"name": device}).first() is not None


def invited(c: sa.Connection, run: str, round: int, device: str) -> None:
    """Refuse a device that has no mail of that round.

    Raises:
        TransportError: E-CLOSED. E-OUTDATED where the round is too old for an asynchronous run.
    """
    query = sa.select(MAIL.c.number).where(
        MAIL.c.device == device, MAIL.c.run == run, MAIL.c.round == round, sa.not_(MAIL.c.inbound)
    )
    if c.execute(query.limit(1)).first() is None:
        if served.outdated(c, run, round):
            what = f"round {round} is more than buffer.max_staleness rounds ago."
            raise TransportError("E-OUTDATED", what, "wait for the next invitation.")
        what = f"this device has no part in round {round}, or the round is over."
        raise TransportError("E-CLOSED", what, "wait for the next invitation.")


def accept(
    c: sa.Connection,
    message: frame.FromDevice,
    raw: bytes | memoryview,
    digest: bytes,
    upload: str | None,
    now_s: float,
) -> int:
    """Store a frame from the device that it names. Return the frame's number.

    Args:
        raw: the whole frame.
        digest: SHA-256 of the frame.
        upload: the upload that holds the bytes already; None: they are stored here.
    Raises:
        TransportError: E-CLOSED, E-OUTDATED as ``invited``. E-CONFLICT where another frame of the same phase was
            accepted before. E-QUOTA as ``check_room``.
    """
    run, round, device = message.run, message.round, message.device
    invited(c, run, round, device)
    place = _place(True, run, round, device, phase(message))
    old = c.execute(sa.select(MAIL.c.number, MAIL.c.digest).where(*_at(place))).first()
    if old is not None:
        if old.digest == digest:
            return int(old.number)
        what = f"another {place['phase']} of round {round} was accepted from this device before."
        raise TransportError("E-CONFLICT", what, "a frame cannot be replaced: send the first one, or nothing.")
    if upload is None:
        check_room(c, device, len(raw))
    body = b"" if upload is not None else spool.close_box(round_key(c, run, round), raw, _label(place))
    return _insert(c, place, digest, len(raw), upload, body, now_s)


def check_room(c: sa.Connection, device: str, size: int) -> None:
    """Refuse a frame or an upload of this size, with which a device would have more than ``DEVICE_BYTES`` here.

    Raises TransportError(E-QUOTA).
    """
    mail = sa.select(sa.func.sum(MAIL.c.size)).where(
        MAIL.c.device == device, MAIL.c.inbound, MAIL.c.upload == OptionalText.STORED
    )
    begun = sa.select(sa.func.sum(UPLOADS.c.size)).where(UPLOADS.c.device == device)
    if sum(c.execute(query).scalar() or 0 for query in (mail, begun)) + size > DEVICE_BYTES:
        what = f"frames and uploads of a device may have {DEVICE_BYTES} bytes until their rounds end."
        raise TransportError("E-QUOTA", what, "send less (a smaller rung, fewer segments), or wait for a round's end.")


def arrivals(c: sa.Connection, run: str, after: int, limit: int = 1) -> list[MailboxLetter]:
    """List the sealed frames from devices for a run, in order, with numbers above ``after``."""
    query = sa.select(MAIL).where(MAIL.c.inbound, MAIL.c.run == run, MAIL.c.number > after)
    return [_letter(row) for row in c.execute(query.order_by(MAIL.c.number).limit(limit))]


def opened(letter: MailboxLetter, key: bytes, chunks: spool.Chunks, chunk_bytes: int) -> bytes | memoryview:
    """Open the frame of a letter from a device. Raises DecodeError(E-SEAL), StoreError(E-CHECKPOINT)."""
    if letter.upload is None:
        place = _place(True, letter.run, letter.round, letter.device, letter.phase)
        return spool.open_box(key, letter.body, _label(place))
    return chunks.whole(key, letter.upload, -(-letter.size // chunk_bytes))


def close(c: sa.Connection, run: str, keep: Collection[str] = ()) -> list[str]:
    """End the open rounds of a run, except for the devices ``keep``. Return the uploads whose chunks may be removed.

    Without ``keep`` all rounds of the run close, and their keys are destroyed.
    """
    of_run = MAIL.c.run == run
    if keep:
        c.execute(MAIL.delete().where(of_run, sa.not_(MAIL.c.inbound), MAIL.c.device.not_in(list(keep))))
        return []
    c.execute(MAIL.delete().where(of_run))
    c.execute(ROUNDS.delete().where(ROUNDS.c.run == run))
    gone = [str(row[0]) for row in c.execute(sa.select(UPLOADS.c.id).where(UPLOADS.c.run == run))]
    c.execute(UPLOADS.delete().where(UPLOADS.c.run == run))
    return gone


def retain(c: sa.Connection, run: str, at_work: Mapping[str, int]) -> list[str]:
    """Keep the frames of these devices alone, device -> its round. Return the uploads whose chunks may be removed.

    The key of a round is destroyed once none of its frames is left.
    """
    gone = list[str]()
    for table in (MAIL, UPLOADS):
        for row in c.execute(sa.select(table.c.device, table.c.round).where(table.c.run == run).distinct()).all():
            if at_work.get(row.device) == row.round:
                continue
            place = (table.c.run == run, table.c.device == row.device, table.c.round == row.round)
            if table is UPLOADS:
                gone += [str(id) for id in c.execute(sa.select(UPLOADS.c.id).where(*place)).scalars()]
            c.execute(table.delete().where(*place))
    left = sa.select(MAIL.c.round).where(MAIL.c.run == run)
    c.execute(ROUNDS.delete().where(ROUNDS.c.run == run, ROUNDS.c.round.not_in(left)))
    return gone


def publish(c: sa.Connection, run: str, sizes: dict[str, int]) -> None:
    """Let devices download these blobs of the run, digest -> bytes, and no others."""
    c.execute(PUBLICATIONS.delete().where(PUBLICATIONS.c.run == run))
    if sizes:
        c.execute(PUBLICATIONS.insert(), [{"digest": d, "run": run, "size": size} for d, size in sizes.items()])


def published(c: sa.Connection) -> set[str]:
    """List the digests of all blobs that somebody may download."""
    return {str(row[0]) for row in c.execute(sa.select(PUBLICATIONS.c.digest).distinct())}


def offered(c: sa.Connection, digest: str, device: str | None) -> bool:
    """Return whether a blob is published to everybody or by a run.

    ``device``: count only the runs that this device takes part in; None: any run.
    """
    query = sa.select(PUBLICATIONS.c.run).where(PUBLICATIONS.c.digest == digest)
    if device is not None:
        query = query.where(sa.or_(PUBLICATIONS.c.run == EVERYBODY, _part(PUBLICATIONS.c.run, device)))
    return c.execute(query.limit(1)).first() is not None


def admit(c: sa.Connection, run: str, devices: Collection[str]) -> None:
    """Let devices take part in a run: see it, and download its blobs. They stay when the run is over."""
    rows = [{"device": device, "run": run} for device in devices]
    if rows:
        c.execute(upsert(c, PARTICIPANTS).on_conflict_do_nothing(), rows)


def check_part(c: sa.Connection, run: str, device: str) -> None:
    """Refuse a run that a device has no part in, with the same error as an unknown run.

    Raises TransportError(E-UNKNOWN-ID).
    """
    if c.execute(sa.select(sa.literal(1)).where(_part(sa.literal(run), device))).first() is None:
        what = f"this device has no part in a run {run:.64}."
        raise TransportError("E-UNKNOWN-ID", what, "wait for an invitation.")


def _part(run: sa.ColumnElement[str], device: str) -> sa.ColumnElement[bool]:
    found = sa.select(PARTICIPANTS.c.run).where(PARTICIPANTS.c.device == device, PARTICIPANTS.c.run == run)
    return sa.exists(found)


def _place(inbound: bool, run: str, round: int, device: str, phase: str) -> dict[str, Any]:
    return {"inbound": inbound, "run": run, "round": round, "device": device, "phase": phase}


def _at(place: dict[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [MAIL.c[name] == value for name, value in place.items()]


def _label(place: dict[str, Any]) -> str:
    return "/".join(str(place[name]) for name in ("run", "round", "device", "phase"))


def _insert(
    c: sa.Connection, place: dict[str, Any], digest: bytes, size: int, upload: str | None, body: bytes, now_s: float
) -> int:
    row = MAIL.insert().values(**place, digest=digest, size=size, upload=upload, body=body, at_s=now_s)
    done = c.execute(row).inserted_primary_key
    assert done is not None
    return int(done[0])


def _letter(row: Any) -> MailboxLetter:
    return MailboxLetter(
        row.number, row.run, row.round, row.device, row.phase, row.size, row.upload, row.at_s, row.body
    )
