"""Secret sharing: ``threshold`` of the shares give the secret, and fewer reveal nothing about it.

    f(x) = s + a_1 x + ... + a_(t-1) x^(t-1)  over GF(p), p = 2^256 + 297 (prime);  share at x: f(x)
    s = sum_j y_j prod_(m != j) x_m / (x_m - x_j)

A 32-byte secret is one field element. Python integers do not compute in constant time. Secrets here live for one round
only. Source: Shamir 1979, Communications of the ACM 22(11).

>>> shares = shamir_shares(bytes(range(32)), [1, 2, 3], 2, bytes(32))
>>> combine_shares({1: shares[1], 3: shares[3]}, 2) == bytes(range(32))
True
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from edgewise.core.errors import DecodeError
from edgewise.crypto.prg import KeyStreamWords

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def shamir_shares(secret: bytes, at: Sequence[int], threshold: int, entropy: bytes) -> dict[int, bytes]:
    """Split ``secret`` into shares at the points ``at``.

    Args:
        secret: 32 bytes.
        at: distinct points, each from 1 to 2^32.
        threshold: number of shares that give the secret back, 1 to the number of points.
        entropy: 32 fresh secret bytes. The coefficients are drawn from them, exactly uniform in the field.
    Returns:
        point -> 33 bytes, little-endian.
    Raises:
        ValueError: an argument is outside these limits (own misuse).
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one has {len(secret)}")
    if len(set(at)) != len(at) or not all(1 <= x <= 2**32 for x in at):
        raise ValueError("points must be distinct and lie between 1 and 2^32")
    if not 1 <= threshold <= len(at):
        raise ValueError(f"the threshold must be 1 to {len(at)}, the number of shares, not {threshold}")
    coefficients = [int.from_bytes(secret, "little"), *_uniform_elements(entropy, threshold - 1)]
    out = {}
    for x in at:
        y = 0
        for c in reversed(coefficients):
            y = (y * x + c) % PRIME
        out[x] = y.to_bytes(SHARE_BYTES, "little")
    return out


def is_field_element(share: bytes) -> bool:
    """Return True if ``share`` encodes a field element: 33 bytes, a number below p. Every element has one encoding."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "little") < PRIME


def field_element(secret: bytes) -> bytes:
    """Encode a secret as its field element f(0): 33 bytes, little-endian."""
    return secret.ljust(SHARE_BYTES, b"\0")


def _uniform_elements(entropy: bytes, n: int) -> list[int]:
    """Draw n uniform field elements: 257 random bits each, drawn again if they are not below p."""
    words, out = KeyStreamWords(entropy), list[int]()
    while len(out) < n:
        room = np.empty((n - len(out), SHARE_BYTES), np.uint8)
        words.fill(room.reshape(-1))
        drawn = (int.from_bytes(row.tobytes(), "little") & (2**257 - 1) for row in room)
        out += [candidate for candidate in drawn if candidate < PRIME]
    return out


@lru_cache(maxsize=1024)
def _lagrange(at: tuple[int, ...]) -> tuple[int, ...]:
    """Compute the factors with which shares at these distinct points add up to the secret."""
    out = []
    for x in at:
        top = bottom = 1
        for other in at:
            if other != x:
                top, bottom = top * other % PRIME, bottom * (other - x) % PRIME
        out.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(out)


def combine_shares(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover the secret from at least ``threshold`` shares. The first ``threshold`` by point are used.

    Guarantees: wrong shares give a wrong secret or an error, never a crash. Nothing here can tell which share is wrong.

    Raises:
        DecodeError: E-SHARE for too few shares, a share that is no field element, or a result that is no 32-byte
            secret.
    """
    if len(shares) < threshold:
        raise DecodeError("E-SHARE", f"there are {len(shares)} shares, and {threshold} are needed.")
    points = tuple(sorted(shares))[:threshold]
    if not all(is_field_element(shares[x]) for x in points):
        raise DecodeError("E-SHARE", "a share is no element of the field.")
    values = [int.from_bytes(shares[x], "little") for x in points]
    secret = sum(c * v for c, v in zip(_lagrange(points), values, strict=True)) % PRIME
    if secret >> 256:
        raise DecodeError("E-SHARE", "the shares belong to no secret.")
    return secret.to_bytes(SECRET_BYTES, "little")
