"""Key agreement: X25519 and HKDF-SHA256 from the ``cryptography`` library (RFC 7748, RFC 5869)."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgewise.core.errors import DecodeError

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair as raw bytes, 32 each."""

    public: bytes
    secret: bytes = field(repr=False)


def pair(entropy: bytes) -> Pair:
    """An X25519 pair whose secret is these 32 bytes, which must be uniform and fresh."""
    return Pair(public(entropy), entropy)


def public(secret: bytes) -> bytes:
    """The public half of a secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def derive(secret: bytes, salt: bytes, info: bytes, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(secret)


class Secret:
    """A secret key, loaded once for many agreements: loading costs as much as one of them."""

    __slots__ = ("_key",)

    def __init__(self, secret: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(secret)

    def shared(self, peer: bytes) -> bytes:
        """X25519(secret, peer), for ``derive`` only: the same 32 bytes on both sides, not uniform.

        Raises DecodeError(E-KEY-AGREE): ``peer`` is no key, or one of small order (the shared value would be zero).
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(peer))
        except ValueError:
            raise DecodeError("E-KEY-AGREE", "a peer's public key is not usable.") from None

    def agree(self, peer: bytes, salt: bytes, info: bytes) -> bytes:
        """HKDF(X25519(secret, peer), salt, info). Raises as ``shared``."""
        return derive(self.shared(peer), salt, info)


def agree(secret: bytes, peer: bytes, salt: bytes, info: bytes) -> bytes:
    """``Secret.agree``, for one agreement."""
    return Secret(secret).agree(peer, salt, info)


def usable(peer: bytes) -> bool:
    """Whether ``peer`` is a public key that ``agree`` takes: 32 bytes, and not of small order.

    A secret scalar is a multiple of 8, so a point of small order gives zero with every secret, and the one that is used
    here does not matter.
    """
    try:
        X25519PrivateKey.from_private_bytes(bytes(KEY_BYTES)).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        return False
    return True
