"""Promoted models: the released models that devices and gateways use for inference. Functions of a connection.

    promote A, promote B, rollback         # A is the promoted model again

Rows are only added, and each says who did it and when. The models behind the newest one are kept for a rollback, at
most ``KEPT`` of them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from edgewise.core.errors import StoreError, TransportError
from edgewise.core.foreign import foreign
from edgewise.drivers.fleet import audit, mailboxes
from edgewise.drivers.fleet.tables import PROMOTIONS

PROMOTE, ROLLBACK = "promote", "rollback"
KEPT = 8


@dataclass(frozen=True, slots=True)
class Promotion:
    """A promotion or a rollback: a released model and its origin.

    Attributes:
        run, name: id and name of the run.
        played: number of rounds of the run that led to the model.
        model: digest of its parameters, raw float32.
        total: digest of the total of the model's round. None where it released none.
        chain: end of the chain that the verification of the run computed.
        layout: digest of the layout (``Spec.written``).
        base: the model that the run began with, as named in its facts.
        blobs: digest -> bytes, of parameters, layout, and files of the base.
        by: the member who did it.
        at_s: time.
        verb: ``PROMOTE`` or ``ROLLBACK``.
    """

    run: str
    name: str
    played: int
    model: str
    total: str | None
    chain: str
    layout: str
    base: str
    blobs: Mapping[str, int]
    by: str
    at_s: float
    verb: str = PROMOTE


def promotion_history(c: sa.Connection) -> list[Promotion]:
    """List all promotions and rollbacks, the oldest first."""
    return [_promotion(row) for row in c.execute(sa.select(PROMOTIONS).order_by(PROMOTIONS.c.number))]


def standing_promotions(rows: Sequence[Promotion]) -> list[Promotion]:
    """List the promotions that were not taken back. The last one is the promoted model."""
    found: list[Promotion] = []
    for row in rows:
        found = [*found, row][-KEPT:] if row.verb == PROMOTE else found[:-1]
    return found


def current_promotion(c: sa.Connection) -> Promotion:
    """Return the promoted model of the fleet.

    Raises:
        TransportError: E-UNKNOWN-ID where there is none.
    """
    if not (found := standing_promotions(promotion_history(c))):
        raise TransportError("E-UNKNOWN-ID", "no model is promoted.", "ask an operator: `edgewise models promote RUN`.")
    return found[-1]


def former_promotion(c: sa.Connection) -> Promotion:
    """Return the model that a rollback would promote again.

    Raises:
        TransportError: E-CONFLICT where there is none.
    """
    found = standing_promotions(promotion_history(c))
    if len(found) < 2:
        what = "no model was promoted before this one, or it is not kept any more."
        raise TransportError("E-CONFLICT", what, "promote another model: `edgewise models promote RUN`.")
    return found[-2]


def read_promotion(folder: Path) -> Promotion:
    """Read the promoted model of the server in a folder, which may be running.

    Raises:
        TransportError: E-UNKNOWN-ID where there is none.
        StoreError: E-CHECKPOINT for a damaged database.
    """
    place = f"{(folder / 'server.db').resolve().as_uri()}?mode=ro"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(place, uri=True), poolclass=sa.NullPool)
    fix = "start the server, or look at it with `edgewise doctor --server`."
    with foreign(StoreError, "E-CHECKPOINT", f"{folder / 'server.db'} cannot be read", fix), engine.connect() as c:
        return current_promotion(c)


def add_promotion(c: sa.Connection, new: Promotion) -> None:
    """Write a promotion or a rollback, and publish the model that is then promoted to all members."""
    row = {**asdict(new), "blobs": json.dumps(dict(new.blobs), sort_keys=True)}
    c.execute(PROMOTIONS.insert().values(**row))
    audit.note(c, new.by, new.verb, new.run, new.at_s)
    blobs = {digest: size for one in standing_promotions(promotion_history(c)) for digest, size in one.blobs.items()}
    mailboxes.publish(c, mailboxes.EVERYBODY, blobs)


def _promotion(row: Any) -> Promotion:
    known = row._asdict()
    del known["number"]
    return Promotion(**{**known, "blobs": json.loads(row.blobs)})
