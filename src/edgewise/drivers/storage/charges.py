"""The privacy ledger as rows of ``run.db``. Rows are only added, and each row is chained to the one before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from edgewise.drivers.storage.schema import CHARGES
from edgewise.privacy import ledger
from edgewise.privacy.ledger import LedgerEntry
from edgewise.privacy.spend import PrivacyEvent

ROWS = sa.select(CHARGES).order_by(CHARGES.c.number)


def end_of_charges(c: sa.Connection, start: str) -> tuple[int, str]:
    """Return the number of rows and the digest of the last row, or ``start`` where there is no row."""
    count = c.execute(sa.select(sa.func.count()).select_from(CHARGES)).scalar_one()
    last = c.execute(sa.select(CHARGES.c.digest).order_by(CHARGES.c.number.desc()).limit(1)).scalar_one_or_none()
    return count, start if last is None else last


def add_stored_charge(c: sa.Connection, start: str, new: LedgerEntry) -> None:
    """Add a charge. A second charge for the same round and attempt changes nothing."""
    same = sa.select(CHARGES.c.number).where(CHARGES.c.round == new.round, CHARGES.c.attempt == new.attempt)
    if c.execute(same).first() is not None:
        return
    row = {"round": new.round, "attempt": new.attempt, "cohort": new.cohort, "event": json.dumps(new.event.to_plain())}
    c.execute(CHARGES.insert().values(**row, digest=ledger.ledger_link(end_of_charges(c, start)[1], new)))


def stored_charge(row: Any) -> LedgerEntry:
    """Read one of ``ROWS`` as a charge. Raises whatever parsing raises."""
    return LedgerEntry(row.round, row.attempt, row.cohort, PrivacyEvent.from_plain(json.loads(row.event)))


def read_stored_charges(rows: Sequence[Any], start: str) -> tuple[tuple[LedgerEntry, ...], tuple[str, ...]]:
    """Read the charges of ``ROWS`` and check their chain.

    Returns:
        The charges, and the digests of the chain: ``start``, then one for each row.
    Raises:
        ValueError: where a row is not the one that was written after the row before it. Parsing may raise other errors.
    """
    charges, chain = [], [start]
    for row in rows:
        charges.append(stored_charge(row))
        chain.append(ledger.ledger_link(chain[-1], charges[-1]))
        if row.digest != chain[-1]:
            raise ValueError(f"row {row.number} is not the one that was written there")
    return tuple(charges), tuple(chain)
