"""Sealed boxes: AES-256-GCM with a key used once or with random nonces, and HPKE to a public key (RFC 9180).

>>> box = seal(bytes(32), b"text", b"round 3")
>>> open_sealed(bytes(32), box, b"round 3")
b'text'
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from edgewise.core.errors import DecodeError

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_ONCE = bytes(12)  # A nonce of zeros is sound because a key seals one box only.
OVERHEAD_BYTES = 16  # added by a box under a shared key
HPKE_OVERHEAD_BYTES = 48
KEY_BYTES = 32
NONCE_BYTES = 12
_LEAD_BYTES = KEY_BYTES + HPKE_OVERHEAD_BYTES  # A large box begins with its sealed key.
LARGE_OVERHEAD_BYTES = _LEAD_BYTES + OVERHEAD_BYTES


def seal(key: bytes, plain: bytes | memoryview, bound: bytes) -> bytes:
    """Seal a box that only ``key`` opens.

    Args:
        key: 32 bytes that seal nothing else.
        plain: the contents.
        bound: context that is authenticated with the box.
    """
    return AESGCM(key).encrypt(_ONCE, plain, bound)


def open_sealed(key: bytes, box: bytes | memoryview, bound: bytes) -> bytes:
    """Open a box of ``seal``. Raises DecodeError(E-SEAL) unless the box was sealed with this key and ``bound``."""
    try:
        return AESGCM(key).decrypt(_ONCE, box, bound)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None


def open_sealed_into(key: bytes, box: memoryview, bound: bytes, out: memoryview) -> None:
    """Open a box of ``seal`` into memory of exactly its contents' size. Raises DecodeError(E-SEAL) as
    ``open_sealed``."""
    try:
        AESGCM(key).decrypt_into(_ONCE, box, bound, out)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None


def hpke_seal(public: bytes, plain: bytes | memoryview, bound: bytes) -> bytes:
    """Seal a box for the holder of an X25519 key: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode.

    ``bound`` enters the key schedule as HPKE's ``info``, so a box opens only with exactly the same ``bound``.

    Raises:
        DecodeError: E-KEY-AGREE if ``public`` is no key.
    """
    try:
        return _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(public), bound)
    except ValueError:
        raise DecodeError("E-KEY-AGREE", "a peer's public key is not usable.") from None


def hpke_open(secret: bytes, box: bytes, bound: bytes) -> bytes:
    """Open a box of ``hpke_seal``. Raises DecodeError(E-SEAL)."""
    try:
        return _SUITE.decrypt(box, X25519PrivateKey.from_private_bytes(secret), bound)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None


class SealingKey:
    """A key for many boxes: AES-256-GCM with random nonces, at most 2^32 of them.

    ``key`` is 32 bytes that are used for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, nonce: bytes, plain: bytes | memoryview, bound: bytes) -> bytes:
        """Seal the contents of a box that begins with its ``nonce``: 12 random bytes.

        ``bound`` is authenticated with it.

        The result is the box without its nonce.
        """
        return self._cipher.encrypt(nonce, plain, bound)

    def open(self, box: bytes | memoryview, bound: bytes) -> bytes:
        """Open a whole box, nonce included.

        Raises DecodeError(E-SEAL) for another key or ``bound``, and for changed bytes.
        """
        view = memoryview(box)
        try:
            return self._cipher.decrypt(view[:NONCE_BYTES], view[NONCE_BYTES:], bound)
        except (InvalidTag, ValueError):
            raise DecodeError("E-SEAL", "a sealed box does not open.") from None


class LargeSealedBox:
    """A box for the holder of an X25519 key, written piece by piece, without a second copy of its plain text.

    HPKE seals a key, and that key seals the pieces with AES-256-GCM, both for ``bound``. This is how CMS envelopes data
    (RFC 5652, 6), with HPKE for the key (RFC 9180). Bytes: sealed key (80), cipher text, tag (16).

    Args:
        public: the holder's key.
        key: 32 fresh secret bytes that seal nothing else.
        bound: context that is authenticated with the box.
        room: memory for the box, ``LARGE_OVERHEAD_BYTES`` more than the plain text. It never holds plain text, whatever
            fails.
    Raises:
        DecodeError: E-KEY-AGREE if ``public`` is no key.
    """

    def __init__(self, public: bytes, key: bytes, bound: bytes, room: memoryview) -> None:
        self._room, self._at = room, _LEAD_BYTES
        room[:_LEAD_BYTES] = hpke_seal(public, key, bound)
        self._stream = Cipher(algorithms.AES256(key), modes.GCM(_ONCE)).encryptor()
        self._stream.authenticate_additional_data(bound)

    def write(self, piece: bytes | memoryview) -> None:
        """Seal the next bytes. Raises ValueError if they exceed the room."""
        end = self._at + len(piece)
        if end > len(self._room) - OVERHEAD_BYTES:
            raise ValueError("more plain text than the box has room for")
        self._stream.update_into(piece, self._room[self._at : end])
        self._at = end

    def close(self) -> None:
        """Write the tag, which completes the box. Raises ValueError if plain text is missing."""
        if self._at != len(self._room) - OVERHEAD_BYTES:
            raise ValueError("less plain text than the box has room for")
        self._stream.finalize()
        self._room[self._at :] = self._stream.tag


def open_large_box(secret: bytes, box: bytes | memoryview, bound: bytes) -> bytes:
    """Open a ``LargeSealedBox``. Raises DecodeError(E-SEAL)."""
    key = hpke_open(secret, bytes(box[:_LEAD_BYTES]), bound)
    if len(key) != KEY_BYTES:
        raise DecodeError("E-SEAL", "a sealed box does not open.")
    try:
        return AESGCM(key).decrypt(_ONCE, box[_LEAD_BYTES:], bound)
    except (InvalidTag, ValueError):
        raise DecodeError("E-SEAL", "a sealed box does not open.") from None
