"""The keys to which devices seal their two shares, each signed by its server for one run.

    statement = made_share_key(gateway, "helper", run, public)            the gateway, or the server for "leader"
    key = checked_share_key(statement, "helper", run, name)               a device: its owner has pinned ``name``
    attested(statement, "helper", run, key, references, now)    a device whose owner names programs that may hold it

A device that sealed both shares to keys of the server would show it the update. So a device accepts the helper's
key only with the signature of the gateway whose fingerprint its owner has pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.crypto import sign
from edgewise.crypto.attest.accept import Reference, accepted
from edgewise.crypto.attest.evidence import Evidence, Facts, bound, refused
from edgewise.drivers.http.identity import Identity, key_fingerprint

LEADER, HELPER = "leader", "helper"
CONTEXT = b"edgewise share key 1\0"  # purpose of the signature; no other signed message of a server begins so


class ShareKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A signed statement of a key, in hexadecimal.

    ``server``: Ed25519 key. ``key``: X25519 key. ``signature``: on ``statement``. ``evidence``: of the machine that
    holds the key. It is bound to the key, so the signature does not cover it.
    """

    server: str
    key: str
    signature: str
    evidence: Evidence | None = None


def statement(role: str, run: str, key: bytes) -> bytes:
    """Return the bytes that a server signs."""
    return CONTEXT + role.encode() + b"\0" + run.encode() + b"\0" + key


def made_share_key(
    server: Identity, role: str, run: str, key: bytes, attest: Callable[[bytes], Evidence] | None = None
) -> ShareKey:
    """Make the statement of a server for a run. ``attest``: obtains evidence for 64 bytes. None: without."""
    signature = server.sign(statement(role, run, key))
    evidence = None if attest is None else attest(bound(role, run, key))
    return ShareKey(server=server.public.hex(), key=key.hex(), signature=signature.hex(), evidence=evidence)


def checked_share_key(document: Any, role: str, run: str, name: str) -> bytes:
    """Check a statement and return its key, 32 bytes.

    Args:
        document: the statement as it came, as JSON.
        name: fingerprint of the server's key.
    Raises:
        DecodeError: E-SERVER-KEY for a statement that this server did not sign for this role in this run.
    """
    try:
        found = msgspec.convert(document, ShareKey)
        public, key, signature = (bytes.fromhex(text) for text in (found.server, found.key, found.signature))
    except (msgspec.ValidationError, ValueError):
        public = key = signature = b""
    signed = sign.verify(public, signature, statement(role, run, key))
    if len(key) != 32 or key_fingerprint(public) != name or not signed:
        raise DecodeError(
            "E-SERVER-KEY",
            f"the {role}'s key of this run is not signed by the server {name}.",
            "ask the operator which gateway the run has, and the gateway's operator for its fingerprint.",
        )
    return key


def attested(document: Any, role: str, run: str, key: bytes, references: Sequence[Reference], now: datetime) -> Facts:
    """Check the evidence in a checked statement, and return its facts.

    Raises DecodeError: E-ATTEST for a key that no accepted program attests for this role in this run. E-MISSING.
    """
    evidence = msgspec.convert(document, ShareKey).evidence
    if evidence is None:
        raise refused(f"the {role}'s key of this run comes without any")
    return accepted(evidence, references, bound(role, run, key), now)
