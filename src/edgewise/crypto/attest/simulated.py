"""Simulated evidence: a statement that a key signs in software. It proves nothing about a machine.

It exists so that all that is around evidence can be tried where no such machine is. An owner accepts it only by naming
the signing key, and whoever has that key can state anything.
"""

from __future__ import annotations

from datetime import datetime

import msgspec

from edgewise.core.safe_repr import outline
from edgewise.crypto import sign
from edgewise.crypto.attest.evidence import BOUND_BYTES, Evidence, Facts, refused

_CONTEXT = b"edgewise simulated evidence 1\0"
MEASUREMENT_BYTES = 48


class _Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    measurement: bytes
    bound: bytes
    public: bytes
    signature: bytes

    __repr__ = outline


def made(secret: bytes, measurement: bytes, bound: bytes) -> Evidence:
    """Sign simulated evidence. ``secret``: an Ed25519 key, 32 bytes. ``measurement``: 48 bytes. ``bound``: 64."""
    signature = sign.sign(secret, _CONTEXT + measurement + bound)
    statement = _Statement(measurement=measurement, bound=bound, public=sign.pair(secret).public, signature=signature)
    return Evidence(platform="simulated", document=msgspec.json.encode(statement))


def verify(evidence: Evidence, now: datetime) -> Facts:
    """Verify the signature of a statement by the key in it. Raises DecodeError(E-ATTEST)."""
    try:
        found = msgspec.json.decode(evidence.document, type=_Statement)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise refused("its statement is malformed") from None
    if (len(found.measurement), len(found.bound)) != (MEASUREMENT_BYTES, BOUND_BYTES):
        raise refused("its statement has other sizes")
    if not sign.verify(found.public, found.signature, _CONTEXT + found.measurement + found.bound):
        raise refused("its statement is not signed by its key")
    registers = {"measurement": found.measurement.hex()}
    return Facts("simulated", found.bound, registers, debug=False, signer=found.public.hex())
