"""A device's secrets from what the holders of its shares told, some of whom may lie.

Each secret is checked against what its device signed at the start, so wrong shares cannot give a wrong secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgewise.core.errors import DecodeError
from edgewise.crypto import agree, shamir
from edgewise.secagg.messages import Keys
from edgewise.secagg.secrets import commitment

_TRIES = 64  # sets of shares that are tried where some are wrong


def seed(sid: bytes, device: str, keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The seed of a device's own mask. ``shares``: point -> 33 bytes. Raises DecodeError(E-SHARE)."""
    return _recover(shares, threshold, lambda secret: commitment(sid, device, secret) == keys.commitment)


def key(keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind a device's pairwise masks. Raises as ``seed``."""
    return _recover(shares, threshold, lambda secret: agree.public(secret) == keys.mask)


def _recover(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> bytes:
    for chosen in _sets(sorted(shares), threshold):
        try:
            secret = shamir.combine({x: shares[x] for x in chosen}, threshold)
        except DecodeError:
            continue
        if right(secret):
            return secret
    raise DecodeError("E-SHARE", f"too few right shares, {threshold} are needed.")


def _sets(points: list[int], size: int) -> Iterable[list[int]]:
    """Sets of shares to try: windows around the circle of points."""
    n = len(points)
    if n >= size:
        for first in range(min(n, _TRIES)):
            yield sorted(points[(first + i) % n] for i in range(size))
