"""The keys to which devices seal their two shares, each signed by its server for one run.

    said = made(gateway, "helper", run, public)                 the gateway, or the orchestrator for "leader"
    key = checked(said, "helper", run, name)                    a device: ``name`` is pinned, and nobody's word

Whoever seals both shares to keys of the orchestrator shows it the update. So a device takes the helper's key only where
it is signed by the gateway whose fingerprint its owner has pinned.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.crypto import sign
from edgewise.drivers.http.identity import Identity, fingerprint

LEADER, HELPER = "leader", "helper"
CONTEXT = b"edgewise share key 1\0"  # what the signature is for; no other signature of a server begins so


class ShareKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The statement, in hexadecimal. ``server``: Ed25519 key. ``key``: X25519 key. ``signature``: on ``statement``."""

    server: str
    key: str
    signature: str


def statement(role: str, run: str, key: bytes) -> bytes:
    """What a server signs."""
    return CONTEXT + role.encode() + b"\0" + run.encode() + b"\0" + key


def made(server: Identity, role: str, run: str, key: bytes) -> ShareKey:
    """The statement of a server for a run."""
    signature = server.sign(statement(role, run, key))
    return ShareKey(server=server.public.hex(), key=key.hex(), signature=signature.hex())


def checked(said: Any, role: str, run: str, name: str) -> bytes:
    """The key, of 32 bytes. ``said``: the statement as it came, as JSON. ``name``: fingerprint of the server's key.

    Raises DecodeError(E-SERVER-KEY) for anything that this server did not sign for this role in this run.
    """
    try:
        found = msgspec.convert(said, ShareKey)
        public, key, signature = (bytes.fromhex(text) for text in (found.server, found.key, found.signature))
    except (msgspec.ValidationError, ValueError):
        public = key = signature = b""
    signed = sign.verify(public, signature, statement(role, run, key))
    if len(key) != 32 or fingerprint(public) != name or not signed:
        raise DecodeError(
            "E-SERVER-KEY",
            f"the {role}'s key of this run is not signed by the server {name}.",
            "ask the operator which gateway the run has, and the gateway's operator for its fingerprint.",
        )
    return key
