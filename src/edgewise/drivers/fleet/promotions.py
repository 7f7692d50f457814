"""Promoted models: the released model that devices and gateways use for inference. Functions of a connection.

    promote A, promote B, rollback         # A stands; rows are only ever added, so each says who did it, and when

The models that stand behind the newest one are kept for a rollback, ``KEPT`` of them at most.
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
from edgewise.drivers.fleet import mailboxes
from edgewise.drivers.fleet.tables import PROMOTIONS

PROMOTE, ROLLBACK = "promote", "rollback"
KEPT = 8


@dataclass(frozen=True, slots=True)
class Promotion:
    """A released model, and where it comes from.

    Attributes:
        run, name: of the run. played: rounds of it that led to the model. model: digest of its parameters, raw float32.
        total: digest of the last released total. chain: where the verification of its run ended.
        layout: digest of the layout (``Spec.written``). base: what the run began with, as its facts name it.
        blobs: digest -> bytes: parameters, layout, and files of the base. by: member who did it. at_s: when.
        verb: ``PROMOTE`` or ``ROLLBACK``.
    """

    run: str
    name: str
    played: int
    model: str
    total: str
    chain: str
    layout: str
    base: str
    blobs: Mapping[str, int]
    by: str
    at_s: float
    verb: str = PROMOTE


def history(c: sa.Connection) -> list[Promotion]:
    """All promotions and rollbacks, the oldest first."""
    return [_promotion(row) for row in c.execute(sa.select(PROMOTIONS).order_by(PROMOTIONS.c.number))]


def standing(rows: Sequence[Promotion]) -> list[Promotion]:
    """The promotions that were not taken back, the newest last: the last one is the promoted model."""
    found: list[Promotion] = []
    for row in rows:
        found = [*found, row][-KEPT:] if row.verb == PROMOTE else found[:-1]
    return found


def current(c: sa.Connection) -> Promotion:
    """The promoted model. Raises TransportError(E-UNKNOWN-ID) where there is none."""
    if not (found := standing(history(c))):
        raise TransportError("E-UNKNOWN-ID", "no model is promoted.", "ask an operator: `edgewise models promote RUN`.")
    return found[-1]


def former(c: sa.Connection) -> Promotion:
    """The model that a rollback returns to. Raises TransportError(E-CONFLICT) where there is none."""
    found = standing(history(c))
    if len(found) < 2:
        what = "no model was promoted before this one, or it is not kept any more."
        raise TransportError("E-CONFLICT", what, "promote another model: `edgewise models promote RUN`.")
    return found[-2]


def read(folder: Path) -> Promotion:
    """The promoted model of the server in a folder, which may run.

    Raises TransportError(E-UNKNOWN-ID) where there is none; StoreError(E-CHECKPOINT) for a damaged database.
    """
    place = f"{(folder / 'server.db').resolve().as_uri()}?mode=ro"
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(place, uri=True), poolclass=sa.NullPool)
    fix = "start the server, or look at it with `edgewise doctor --server`."
    with foreign(StoreError, "E-CHECKPOINT", f"{folder / 'server.db'} cannot be read", fix), engine.connect() as c:
        return current(c)


def add(c: sa.Connection, new: Promotion) -> None:
    """Write a promotion or a rollback, and publish what stands after it to all members."""
    row = {**asdict(new), "blobs": json.dumps(dict(new.blobs), sort_keys=True)}
    c.execute(PROMOTIONS.insert().values(**row))
    blobs = {digest: size for one in standing(history(c)) for digest, size in one.blobs.items()}
    mailboxes.publish(c, mailboxes.EVERYBODY, blobs)


def _promotion(row: Any) -> Promotion:
    known = row._asdict()
    del known["number"]
    return Promotion(**{**known, "blobs": json.loads(row.blobs)})
