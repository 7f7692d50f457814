"""Key agreement with X25519 and HKDF-SHA256 from the ``cryptography`` library (RFC 7748, RFC 5869).

>>> alice, bob = agreement_pair(bytes(range(32))), agreement_pair(bytes(range(1, 33)))
>>> agree(alice.secret, bob.public, b"salt", b"demo") == agree(bob.secret, alice.public, b"salt", b"demo")
True
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgewise.core.errors import DecodeError

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class AgreementPair:
    """A key pair as raw bytes, 32 each."""

    public: bytes
    secret: bytes = field(repr=False)


def agreement_pair(entropy: bytes) -> AgreementPair:
    """Make an X25519 pair whose secret is ``entropy``: 32 bytes, uniform and fresh."""
    return AgreementPair(public_half(entropy), entropy)


def public_half(secret: bytes) -> bytes:
    """Compute the public half of a secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def hkdf_derive(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """Derive ``length`` bytes with HKDF-SHA256."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


class AgreementSecret:
    """A secret key, loaded once for many agreements. Loading costs as much as one agreement."""

    __slots__ = ("_key",)

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)

    def shared(self, peer: bytes) -> bytes:
        """Compute X25519(secret, peer): the same 32 bytes on both sides.

        They are not uniform, so use them in ``derive`` only.

        Raises:
            DecodeError: E-KEY-AGREE if ``peer`` is no key, or one of small order (the shared value would be zero).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise DecodeError("E-KEY-AGREE", "a peer's public key is not usable.") from None

    def agree(self, peer: bytes, salt: bytes, info: bytes) -> bytes:
        """Compute HKDF(X25519(secret, peer), salt, info). Raises as ``shared``."""
        return hkdf_derive(self.shared(peer), salt, info)


def agree(secret: bytes, peer: bytes, salt: bytes, info: bytes) -> bytes:
    """Compute ``Secret.agree`` for a single agreement."""
    return AgreementSecret(secret).agree(peer, salt, info)


def usable_public_key(peer: bytes) -> bool:
    """Return True if ``agree`` accepts ``peer``: 32 bytes, and not of small order.

    A secret scalar is a multiple of 8, so a point of small order gives zero with every secret. The secret that is used
    for the test therefore does not matter.
    """
    try:
        X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        return False
    return True
