"""Signatures: Ed25519 from the ``cryptography`` library (RFC 8032). What is signed names its own purpose."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgewise.crypto.agree import Pair

SIGNATURE_BYTES = 64


def pair(entropy: bytes) -> Pair:
    """An Ed25519 pair whose secret is these 32 bytes."""
    return Pair(Ed25519PrivateKey.from_private_bytes(entropy).public_key().public_bytes_raw(), entropy)


def sign(secret: bytes, message: bytes) -> bytes:
    """64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(secret).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` is ``public``'s on ``message``; False for anything malformed."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
