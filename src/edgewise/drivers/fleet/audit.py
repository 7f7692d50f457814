"""The audit log of a server: who changed what, and when. Rows are only added, and each is chained to the one before.

    audit.note(c, member.id, "approve", device, now_s)     # in the transaction of the change itself
    audit.problem(audit.rows(c))                           # None where no row before the newest was touched

A person who can write the database can also write all rows anew, or remove the newest. So an auditor keeps the newest
digest elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from edgewise.drivers.fleet.tables import AUDIT

_START = hashlib.sha256(b"edgewise audit").hexdigest()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change. ``by``: id of the member, or ``server``. ``what``: the id that the verb was applied to."""

    number: int
    at_s: float
    by: str
    verb: str
    what: str
    digest: str


def note(c: sa.Connection, by: str, verb: str, what: str, now_s: float) -> None:
    """Add a row to the fleet's audit log."""
    last = c.execute(sa.select(AUDIT.c.digest).order_by(AUDIT.c.number.desc()).limit(1)).scalar()
    digest = _link(last or _START, now_s, by, verb, what)
    c.execute(AUDIT.insert().values(at_s=now_s, by=by, verb=verb, what=what, digest=digest))


def audit_log_rows(c: sa.Connection) -> list[AuditEntry]:
    """List all rows of the fleet's audit log, the oldest first."""
    return [AuditEntry(**row._asdict()) for row in c.execute(sa.select(AUDIT).order_by(AUDIT.c.number))]


def newest_audit_rows(c: sa.Connection, limit: int, before: int = 2**62) -> list[AuditEntry]:
    """List the newest rows with a number below ``before``, the newest first."""
    query = sa.select(AUDIT).where(AUDIT.c.number < before).order_by(AUDIT.c.number.desc()).limit(limit)
    return [AuditEntry(**row._asdict()) for row in c.execute(query)]


def audit_log_problem(entries: Sequence[AuditEntry]) -> str | None:
    """Name the first row that does not follow from the rows before it. None: all rows do."""
    before = _START
    for entry in entries:
        before = _link(before, entry.at_s, entry.by, entry.verb, entry.what)
        if entry.digest != before:
            return f"row {entry.number} is not the one that was written there"
    return None


def _link(before: str, at_s: float, by: str, verb: str, what: str) -> str:
    return hashlib.sha256(json.dumps([before, at_s, by, verb, what]).encode()).hexdigest()
