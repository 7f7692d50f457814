"""Secret sharing: any ``threshold`` of the shares give the secret, fewer say nothing about it.

    f(x) = s + a_1 x + ... + a_(t-1) x^(t-1)  over GF(p), p = 2^256 + 297 (prime);  share at x: f(x)
    s = sum_j y_j prod_(m != j) x_m / (x_m - x_j)

A 32-byte secret is one field element. Python integers are not constant in time; secrets here live for one round.
Source: Shamir 1979, Communications of the ACM 22(11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from edgewise.core.errors import DecodeError
from edgewise.crypto.prg import Words

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def share(secret: bytes, at: Sequence[int], threshold: int, entropy: bytes) -> dict[int, bytes]:
    """Shares of ``secret`` at the points ``at``.

    Args:
        secret: 32 bytes. at: distinct points, each from 1 to 2^32. threshold: 1 to the number of points.
        entropy: 32 fresh secret bytes; the coefficients are drawn from it, exactly uniform in the field.
    Returns:
        point -> 33 bytes, little-endian.
    Raises:
        ValueError: own misuse.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes, this one {len(secret)}")
    if len(set(at)) != len(at) or not all(1 <= x <= 2**32 for x in at):
        raise ValueError("points must be distinct and lie between 1 and 2^32")
    if not 1 <= threshold <= len(at):
        raise ValueError(f"threshold {threshold} of {len(at)} shares")
    coefficients = [int.from_bytes(secret, "little"), *_uniform(entropy, threshold - 1)]
    out = {}
    for x in at:
        y = 0
        for c in reversed(coefficients):
            y = (y * x + c) % PRIME
        out[x] = y.to_bytes(SHARE_BYTES, "little")
    return out


def is_element(share: bytes) -> bool:
    """Return whether ``share`` encodes a field element: 33 bytes, a number below p. Every element has one encoding."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "little") < PRIME


def element(secret: bytes) -> bytes:
    """A secret as the field element that it is, f(0): 33 bytes, little-endian."""
    return secret.ljust(SHARE_BYTES, b"\0")


def _uniform(entropy: bytes, n: int) -> list[int]:
    """n uniform field elements: 257 random bits, drawn again where they are not below p."""
    words, out = Words(entropy), list[int]()
    while len(out) < n:
        room = np.empty((n - len(out), SHARE_BYTES), np.uint8)
        words.fill(room.reshape(-1))
        drawn = (int.from_bytes(row.tobytes(), "little") & (2**257 - 1) for row in room)
        out += [candidate for candidate in drawn if candidate < PRIME]
    return out


@lru_cache(maxsize=1024)
def lagrange(at: tuple[int, ...]) -> tuple[int, ...]:
    """The factors with which shares at these distinct points add up to the secret."""
    out = []
    for x in at:
        top = bottom = 1
        for other in at:
            if other != x:
                top, bottom = top * other % PRIME, bottom * (other - x) % PRIME
        out.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(out)


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from at least ``threshold`` shares (the first ``threshold`` by point are used).

    Guarantees: wrong shares give a wrong secret or an error, never a crash; nothing here can tell which.
    Raises:
        DecodeError(E-SHARE): too few shares, one that is no field element, or a result that is no 32-byte secret.
    """
    if len(shares) < threshold:
        raise DecodeError("E-SHARE", f"{len(shares)} shares, {threshold} are needed.")
    at = tuple(sorted(shares))[:threshold]
    if not all(is_element(shares[x]) for x in at):
        raise DecodeError("E-SHARE", "a share is no element of the field.")
    values = [int.from_bytes(shares[x], "little") for x in at]
    secret = sum(c * v for c, v in zip(lagrange(at), values, strict=True)) % PRIME
    if secret >> 256:
        raise DecodeError("E-SHARE", "the shares belong to no secret.")
    return secret.to_bytes(SECRET_BYTES, "little")
