"""The durable memory of a gateway: the runs for which it is the second server, and the replay store of each.

    record = HelpedRun(database, blobs, run)        port ``local_helper.HelperRecord``

Every step is one transaction, and it is on the disk before its answer leaves. Tickets are stored as they came, sealed
to the run's own key. The transaction that opens their batch deletes them, when the share that opens it is on the disk.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

import sqlalchemy as sa

from edgewise.core import frame
from edgewise.core.errors import DecodeError, StoreError
from edgewise.core.frame import Invite
from edgewise.core.training import DeviceId
from edgewise.drivers.fleet.database import Database
from edgewise.drivers.fleet.tables import HELPED, TICKETS
from edgewise.drivers.simulation.local_helper import HelperMemory, TicketAnswer
from edgewise.drivers.storage.blob_store import BlobStore
from edgewise.drivers.storage.dialects import OptionalBytes, OptionalText, upsert

LIMIT_BYTES = 2**20  # the largest invitation


@dataclass(frozen=True, slots=True)
class Enlisted:
    """A run that a gateway helps with.

    It holds the signed facts, the layout, the devices' keys (``fleet.roster``), and an HPKE key for this run alone.
    """

    run: str
    facts: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    layout: list[tuple[str, list[int], str]] = field(repr=False)
    roster: bytes = field(repr=False)
    secret: bytes = field(repr=False)


def enlist_helped_run(c: sa.Connection, new: Enlisted, now_s: float) -> None:
    """Begin to help with a run. A known run stays as it is."""
    row = {
        "run": new.run, "facts": new.facts, "signature": new.signature, "layout": json.dumps(new.layout),
        "roster": new.roster, "secret": new.secret, "made_s": now_s, "attempt": 0, "invite": None, "opened": None,
        "batch": None, "share": None,
    }  # fmt: skip
    c.execute(upsert(c, HELPED).values(row).on_conflict_do_nothing())


def find_helped_run(c: sa.Connection, run: str) -> Enlisted | None:
    """Find a run that this gateway helps, by its id."""
    row = c.execute(sa.select(HELPED).where(HELPED.c.run == run)).first()
    if row is None:
        return None
    layout = [(name, shape, dtype) for name, shape, dtype in json.loads(row.layout)]
    return Enlisted(row.run, row.facts, row.signature, layout, row.roster, row.secret)


def dump_helped_round(invite: Invite, beacon: bytes | None) -> bytes:
    """Serialise the beginning of a round: the invitation, or its length as u32, the invitation and the beacon."""
    raw = frame.dump(invite)
    return raw if beacon is None else len(raw).to_bytes(4, "little") + raw + beacon


def read_helped_round(raw: bytes, verified: bool) -> tuple[Invite, bytes | None]:
    """Parse the beginning of a round. ``verified``: devices verify the run's cohorts, so that a beacon follows.

    Raises DecodeError: E-FRAME for anything that ``dump_helped_round`` cannot have produced.
    """
    end = 4 + int.from_bytes(raw[:4], "little") if verified else len(raw)
    return _invitation(raw[4:end] if verified else raw), raw[end:] if verified else None


def _invitation(raw: bytes) -> Invite:
    invite = frame.from_server(raw, LIMIT_BYTES)
    if not isinstance(invite, Invite):
        raise DecodeError("E-FRAME", "not an invitation.")
    return invite


def _beacon_name(raw: bytes) -> str | None:
    """Return the digest of the beacon that a stored invitation names. None where it names none."""
    draw = _invitation(raw).draw
    return None if draw is None else draw.beacon


class HelpedRun:
    """The record of one run.

    Args:
        database: the gateway's database.
        blobs: the store of the shares of opened batches and of the beacons of rounds, and of nothing else.
        run: id of the run.
    """

    def __init__(self, database: Database, blobs: BlobStore, run: str) -> None:
        self._database, self._blobs, self._run = database, blobs, run
        self._mine = TICKETS.c.run == run

    def load(self) -> HelperMemory:
        """See HelperRecord.

        Raises:
            StoreError: E-CHECKPOINT where the share of a batch is missing.
        """
        with self._database.read() as c:
            row = c.execute(sa.select(HELPED).where(HELPED.c.run == self._run)).one()
            rows = c.execute(sa.select(TICKETS).where(self._mine)).all()
        answers = [TicketAnswer(t.digest, t.code, t.ticket) for t in rows if t.attempt == row.attempt]
        ids = {t.id for t in rows if t.code is None and t.ticket is None}
        try:
            invite = None if row.invite is None else _invitation(row.invite)
        except DecodeError:
            what = f"round of {self._run:.12} is damaged."
            raise StoreError("E-CHECKPOINT", what, "restore it from a backup.") from None
        batch = None if row.batch is None else (frozenset(json.loads(row.batch)), self._blobs.get(row.share))
        beacon = None if invite is None or invite.draw is None else self._blobs.get(invite.draw.beacon)
        return HelperMemory(ids, row.opened, invite, answers, batch, beacon)

    def begin(self, invite: Invite, beacon: bytes | None) -> None:
        """See HelperRecord."""
        raw = frame.dump(invite)
        if beacon is not None:
            self._blobs.put(beacon)
            self._blobs.sync()

        def change(c: sa.Connection) -> set[str]:
            c.execute(
                HELPED.update()
                .where(HELPED.c.run == self._run)
                .values(attempt=HELPED.c.attempt + 1, invite=raw, batch=None, share=None)
            )
            c.execute(TICKETS.delete().where(self._mine & (TICKETS.c.code != OptionalText.STORED)))
            c.execute(TICKETS.update().where(self._mine).values(ticket=None))
            rows = c.execute(sa.select(HELPED.c.share, HELPED.c.invite).where(HELPED.c.invite != OptionalBytes.STORED))
            return {name for row in rows for name in (row.share, _beacon_name(row.invite)) if name is not None}

        self._blobs.sweep(lambda: self._database.write(change))

    def answer(self, answer: TicketAnswer, id: bytes | None) -> None:
        """See HelperRecord."""

        def change(c: sa.Connection) -> None:
            attempt = c.execute(sa.select(HELPED.c.attempt).where(HELPED.c.run == self._run)).scalar_one()
            row = {
                "run": self._run, "attempt": attempt, "id": id, "digest": answer.digest,
                "code": answer.code, "ticket": answer.ticket,
            }  # fmt: skip
            c.execute(upsert(c, TICKETS).values(row).on_conflict_do_nothing())

        self._database.write(change)

    def open(self, round: int, devices: Collection[DeviceId], share: bytes) -> None:
        """See HelperRecord."""
        digest = self._blobs.put(share)
        self._blobs.sync()
        names = json.dumps(sorted(devices))

        def change(c: sa.Connection) -> None:
            row = HELPED.update().where(HELPED.c.run == self._run)
            c.execute(row.values(opened=round, batch=names, share=digest))
            c.execute(TICKETS.update().where(self._mine).values(ticket=None))

        self._database.write(change)
        self._database.scrub()
