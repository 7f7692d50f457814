"""Used nonces. A request that changes something is accepted once, and not after its sender was revoked. Functions of a
connection; see ``database``.

A nonce is spent in the transaction of its request's change. So both are durable or neither is, and a revocation comes
either before the change or after it. Only hashes are stored, and only while a signature can still be accepted. So the
rate of requests limits the size of the table.

The database also has the latest time of a deleted nonce. A request that was signed at that time or before is refused,
because the server may have accepted it. This matters where the server's clock is set back: the signature's time alone
would count as fresh again.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import members
from edgewise.drivers.fleet.tables import FORGOTTEN_NONCES, NONCES
from edgewise.drivers.http.limits import LaterError
from edgewise.drivers.http.signatures import TOLERANCE_S, Proof
from edgewise.drivers.storage.dialects import larger_in_sql, upsert

_KEEP_S = 2 * TOLERANCE_S + 1  # one tolerance is needed; the other covers a server clock that is set back a little
_ROW = 0  # the id of the only row of ``FORGOTTEN_NONCES``


def spend_nonce(c: sa.Connection, proof: Proof, now_s: float) -> None:
    """Accept a signed request once, by its nonce in the fleet's database.

    Raises:
        TransportError: E-REPLAY where the same sender spent its nonce before. E-REVOKED where the sender was revoked
            after the request was admitted. E-BUSY where it was signed before nonces that are deleted.
    """
    sender = members.find(c, proof.sender)
    if sender is not None and sender.status == members.REVOKED:
        raise members.revoked_member_error(proof.sender)
    digest = hashlib.sha256(proof.sender.encode() + proof.nonce).digest()
    forgotten_s = c.execute(sa.select(FORGOTTEN_NONCES.c.created_s)).scalar()
    if forgotten_s is not None and proof.created_s <= forgotten_s:
        what = "the request was signed at a time that this server has passed before: its clock was set back."
        fix = "sign it again. If this stays, wait until the server's clock has passed that time again."
        raise LaterError("E-BUSY", what, fix, min(60.0, forgotten_s - proof.created_s + 1.0))
    row = upsert(c, NONCES).values(digest=digest, created_s=proof.created_s).on_conflict_do_nothing()
    if c.execute(row.returning(NONCES.c.digest)).first() is None:
        raise TransportError("E-REPLAY", "this request was accepted before.", "sign every attempt again.")
    if digest[0] == 0:  # one request in 256 sweeps the table
        _sweep(c, now_s - _KEEP_S)


def _sweep(c: sa.Connection, before_s: float) -> None:
    """Delete the nonces of requests that were signed before that time, and note the latest of them."""
    old = NONCES.c.created_s < before_s
    latest = c.execute(sa.select(sa.func.max(NONCES.c.created_s)).where(old)).scalar()
    if latest is None:
        return
    c.execute(NONCES.delete().where(old))
    row = upsert(c, FORGOTTEN_NONCES).values(id=_ROW, created_s=latest)
    higher = {"created_s": larger_in_sql(FORGOTTEN_NONCES.c.created_s, latest)}
    c.execute(row.on_conflict_do_update(index_elements=["id"], set_=higher))
