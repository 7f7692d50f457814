"""Ed25519 signatures on which libraries differ, by the curve's own arithmetic (RFC 8032, 5.1).

Source: Chalkias, Garillot, Nikolaenko 2020, ePrint 2020/1244 (the cases); no figure of theirs is used.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import NamedTuple

P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
ROOT = pow(2, (P - 1) // 4, P)  # of -1
Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """The sum of two points."""
    (x, y), (u, v) = a, b
    t = D * x * u % P * y % P * v % P
    return (x * v + y * u) * pow(1 + t, -1, P) % P, (y * v + x * u) * pow(1 - t, -1, P) % P


def times(n: int, a: Point) -> Point:
    """``n`` times a point."""
    total = (0, 1)
    while n:
        total, a, n = (add(total, a) if n & 1 else total), add(a, a), n >> 1
    return total


def at(y: int, odd: int = 0) -> Point | None:
    """The point of this y; None where there is none."""
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    x = x if (x * x - xx) % P == 0 else x * ROOT % P
    if (x * x - xx) % P:
        return None
    return (P - x if x % 2 != odd and x else x), y


def encoded(a: Point) -> bytes:
    """32 bytes."""
    return (a[1] | (a[0] & 1) << 255).to_bytes(32, "little")


BASE = at(4 * pow(5, -1, P) % P)
assert BASE is not None


@cache
def small() -> tuple[Point, ...]:
    """The eight points of small order, the neutral one first."""
    for y in range(2, 100):
        if (a := at(y)) is not None and times(4, t := times(L, a)) != (0, 1):
            return tuple(times(n, t) for n in range(8))
    raise AssertionError


class Case(NamedTuple):
    """A signature on ``message``. ``good``: whether the protocol takes it."""

    name: str
    public: bytes
    signature: bytes
    message: bytes
    good: bool


def _challenge(r: bytes, public: bytes, message: bytes) -> int:
    return int.from_bytes(hashlib.sha512(r + public + message).digest(), "little") % L


def _signed(public: bytes, r: Point, nonce: int, secret: int, message: bytes, raw: bytes = b"") -> bytes:
    raw = raw or encoded(r)
    s = (nonce + _challenge(raw, public, message) * secret) % L
    return raw + s.to_bytes(32, "little")


def cases() -> list[Case]:
    """Signatures with a secret of 7 or, by keys of small order, by nobody."""
    assert BASE is not None
    secret, nonce, message = 7, 12345, hashlib.sha256(b"message").digest()
    key, r, eight = times(secret, BASE), times(nonce, BASE), small()
    public = encoded(key)
    honest = _signed(public, r, nonce, secret, message)
    s = int.from_bytes(honest[32:], "little")
    mixed = encoded(add(key, eight[1]))  # the key with a part of small order
    tried = (message + bytes([i]) for i in range(256))
    lucky = next(m for m in tried if _challenge(encoded(r), mixed, m) % 8 == 0)  # there the part vanishes
    tried = (message + bytes([i]) for i in range(256))
    odd = next(m for m in tried if _challenge(encoded(r), mixed, m) % 8 == 1)
    made = [
        Case("signed", public, honest, message, True),
        Case("S + L", public, honest[:32] + (s + L).to_bytes(32, "little"), message, False),
        Case(
            "R with a part of small order, which a check with the cofactor takes",
            public, _signed(public, add(r, eight[1]), nonce, secret, message), message, False,
        ),
        Case(
            "a key with a part of small order that does not vanish, which a check with the cofactor takes",
            mixed, _signed(mixed, r, nonce, secret, odd), odd, False,
        ),
        Case(
            "a key whose part of small order vanishes", mixed, _signed(mixed, r, nonce, secret, lucky), lucky, True
        ),
        Case("an R of small order", public, _signed(public, eight[0], 0, secret, message), message, False),
        Case(
            "an R of small order that is not in its one form",
            public, _signed(public, eight[0], 0, secret, message, (P + 1).to_bytes(32, "little")), message, False,
        ),
    ]  # fmt: skip
    forms = {f"small order ({n})": encoded(point) for n, point in enumerate(eight)}
    forms["small order, as 1 + p"], forms["small order, as p"] = (n.to_bytes(32, "little") for n in (P + 1, P))
    forms["small order, with a sign"] = (1 | 1 << 255).to_bytes(32, "little")
    for name, raw in forms.items():
        tried = (message + bytes([i]) for i in range(256))
        at_once = next(m for m in tried if _challenge(encoded(r), raw, m) % 8 == 0)
        made.append(Case(f"a key of {name}", raw, _signed(raw, r, nonce, 0, at_once), at_once, False))
    return made
