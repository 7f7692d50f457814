"""Sealed boxes: AES-256-GCM under a key that is used once, and HPKE to a public key (RFC 9180)."""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from edgewise.core.errors import DecodeError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_ONCE = bytes(12)  # a nonce of zeros is sound because a key seals one box only
OVERHEAD_BYTES = 16  # of a box under a shared key
HPKE_OVERHEAD_BYTES = 48


def seal(key: bytes, plain: bytes, bound: bytes) -> bytes:
    """A box that only ``key`` opens; ``bound`` is authenticated with it. ``key`` (32 bytes) must seal nothing else."""
    return AESGCM(key).encrypt(_ONCE, plain, bound)


def open(key: bytes, box: bytes, bound: bytes) -> bytes:
    """Inverse of ``seal``. Raises DecodeError(E-SEAL) where the box is not exactly what was sealed for this."""
    try:
        return AESGCM(key).decrypt(_ONCE, box, bound)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None


def hpke_seal(public: bytes, plain: bytes | memoryview, bound: bytes) -> bytes:
    """A box for the holder of an X25519 key: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode.

    ``bound`` goes into the key schedule as HPKE's ``info``, so a box opens for exactly the same ``bound`` only.
    Raises DecodeError(E-KEY-AGREE) where ``public`` is no key.
    """
    try:
        return _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(public), bound)
    except ValueError:
        raise DecodeError("E-KEY-AGREE", "a peer's public key is not usable.") from None


def hpke_open(secret: bytes, box: bytes, bound: bytes) -> bytes:
    """Inverse of ``hpke_seal``. Raises DecodeError(E-SEAL)."""
    try:
        return _SUITE.decrypt(box, X25519PrivateKey.from_private_bytes(secret), bound)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None
