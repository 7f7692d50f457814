"""Signatures: Ed25519 from the ``cryptography`` library (RFC 8032). Every signed message names its own purpose.

Libraries disagree on signatures that no honest signer makes. If the server accepted one and devices refused it, a round
would end without anyone at fault. So there is one rule: [S]B = R + [k]A without the cofactor, S below the group's
order, and A and R in their canonical form and not of small order. Source: Chalkias, Garillot, Nikolaenko 2020, ePrint
2020/1244.

>>> keys = pair(bytes(32))
>>> verify(keys.public, sign(keys.secret, b"message"), b"message")
True
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgewise.crypto.agree import AgreementPair

SIGNATURE_BYTES = 64
_P = 2**255 - 19
_EIGHTH = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7  # y of four of the points of order 8
_SMALL = frozenset({0, 1, _P - 1, _EIGHTH, _P - _EIGHTH})  # y of all points whose order divides 8


def pair(entropy: bytes) -> AgreementPair:
    """Make an Ed25519 pair whose secret is ``entropy``, 32 bytes."""
    return AgreementPair(Ed25519PrivateKey.from_private_bytes(entropy).public_key().public_bytes_raw(), entropy)


def sign(secret: bytes, message: bytes) -> bytes:
    """Sign a message: 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(secret).sign(message)


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Return True if ``signature`` is ``public``'s signature of ``message``.

    False for malformed input, and for signatures on which libraries disagree.
    """
    if _is_unsafe_point(public) or _is_unsafe_point(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _is_unsafe_point(point: bytes) -> bool:
    """Return True if a point is of small order, or not in its canonical form."""
    y = int.from_bytes(point, "little") & (2**255 - 1)
    return y >= _P or y in _SMALL
