"""Used nonces. A request that changes something is accepted once, and not after its sender was revoked. Functions of a
connection; see ``database``.

A nonce is spent in the transaction of its request's change. So both are durable or neither is, and a revocation comes
either before the change or after it. Only hashes are stored, and only while a signature can still be accepted. So the
rate of requests limits the size of the table.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import members
from edgewise.drivers.fleet.tables import NONCES
from edgewise.drivers.http.signatures import TOLERANCE_S, Proof

_KEEP_S = 2 * TOLERANCE_S + 1  # one tolerance is needed; the other covers a server clock that is set back


def spend(c: sa.Connection, proof: Proof, now_s: float) -> None:
    """Accept a request once.

    Raises:
        TransportError: E-REPLAY where the same sender spent its nonce before. E-REVOKED where the sender was revoked
            after the request was admitted.
    """
    sender = members.find(c, proof.sender)
    if sender is not None and sender.status == members.REVOKED:
        raise members.revoked(proof.sender)
    digest = hashlib.sha256(proof.sender.encode() + proof.nonce).digest()
    row = upsert(NONCES).values(digest=digest, created_s=proof.created_s).on_conflict_do_nothing()
    if not c.execute(row).rowcount:
        raise TransportError("E-REPLAY", "this request was accepted before.", "sign every attempt again.")
    if digest[0] == 0:  # one request in 256 sweeps the table
        c.execute(NONCES.delete().where(NONCES.c.created_s < now_s - _KEEP_S))
