"""The key to which devices seal the second server's shares, signed by that server for one run.

    said = made(gateway, run, public)                  gateway
    key = checked(said, run, name)                     device, orchestrator: ``name`` is pinned, nobody's word

Whoever seals to a key that the orchestrator made shows its update to the orchestrator. So a device takes the key only
where it is signed by the gateway whose fingerprint its owner has pinned.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.http.identity import Identity, fingerprint

CONTEXT = b"edgewise helper key 1\0"  # what the signature is for; no other signature of a gateway begins so


class HelperKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The statement, in hexadecimal. ``gateway``: Ed25519 key. ``key``: X25519 key. ``signature``: on ``statement``."""

    gateway: str
    key: str
    signature: str


def statement(run: str, key: bytes) -> bytes:
    """What a gateway signs."""
    return CONTEXT + run.encode() + b"\0" + key


def made(gateway: Identity, run: str, key: bytes) -> HelperKey:
    """The statement of a gateway for a run."""
    signature = gateway.sign(statement(run, key))
    return HelperKey(gateway=gateway.public.hex(), key=key.hex(), signature=signature.hex())


def checked(said: Any, run: str, name: str) -> bytes:
    """The key, of 32 bytes. ``said``: the statement as it came, as JSON. ``name``: fingerprint of the pinned gateway.

    Raises TransportError(E-SERVER-KEY) for anything that this gateway did not sign for this run.
    """
    try:
        found = msgspec.convert(said, HelperKey)
        public, key, signature = (bytes.fromhex(text) for text in (found.gateway, found.key, found.signature))
    except (msgspec.ValidationError, ValueError):
        public = key = signature = b""
    signed = sign.verify(public, signature, statement(run, key))
    if len(key) != 32 or fingerprint(public) != name or not signed:
        raise TransportError(
            "E-SERVER-KEY",
            f"the key of the second server is not signed by the gateway {name}.",
            "ask the operator which gateway the run has, and the gateway's operator for its fingerprint.",
        )
    return key
