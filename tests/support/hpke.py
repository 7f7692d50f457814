"""HPKE's sealing with a given ephemeral key, written from RFC 9180: library calls draw their own, so nothing they seal
could be made again. DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode, one message.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from session import ROOT

from edgewise.core.keys import derive
from edgewise.crypto import agree
from edgewise.crypto import seal as product

_KEM, _SUITE = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"


def _extract(suite: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, "sha256")


def _expand(suite: bytes, key: bytes, label: bytes, info: bytes, length: int) -> bytes:
    """At most 32 bytes: the first block of HKDF-Expand."""
    labelled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(key, labelled + b"\x01", "sha256")[:length]


def seal(ephemeral: bytes, public: bytes, plain: bytes, info: bytes) -> bytes:
    """The encapsulated key (32 bytes), the cipher text and its tag."""
    sent = agree.public_half(ephemeral)
    prk = _extract(_KEM, b"", b"eae_prk", agree.AgreementSecret(ephemeral).shared(public))
    shared = _expand(_KEM, prk, b"shared_secret", sent + public, 32)
    context = b"\x00" + _extract(_SUITE, b"", b"psk_id_hash", b"") + _extract(_SUITE, b"", b"info_hash", info)
    secret = _extract(_SUITE, shared, b"secret", b"")
    key, nonce = (_expand(_SUITE, secret, label, context, n) for label, n in ((b"key", 32), (b"base_nonce", 12)))
    return sent + AESGCM(key).encrypt(nonce, plain, b"")


def ephemeral(public: bytes, plain: bytes, info: bytes) -> bytes:
    """The ephemeral secret with which ``repeatable`` seals this."""
    return derive(ROOT, "ephemeral", sha256(b"".join(sha256(part).digest() for part in (public, plain, info))).digest())


@contextmanager
def repeatable() -> Iterator[None]:
    """Inside, HPKE's ephemeral keys follow from what is sealed, so reports are the same each time."""
    honest = product.hpke_seal

    def sealed(public: bytes, plain: bytes | memoryview, bound: bytes) -> bytes:
        return seal(ephemeral(public, bytes(plain), bound), public, bytes(plain), bound)

    product.hpke_seal = sealed
    try:
        yield
    finally:
        product.hpke_seal = honest
