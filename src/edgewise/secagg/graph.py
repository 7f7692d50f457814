"""Who shares secrets with whom: everybody with everybody, or a Harary graph over a random circle."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence


def neighbours(seed: bytes, devices: Sequence[str], k: int) -> Mapping[str, tuple[str, ...]]:
    """Each device's neighbours, sorted.

    The devices are put on a circle, in the order of SHA-256(seed, device): a uniformly random one that every
    implementation finds alike. Each is a neighbour of the k / 2 nearest on either side; with k = n - 1 everybody is.
    The relation is symmetric.
    Args:
        seed: 32 bytes that nobody could choose: a hash of all signed keys. devices: distinct. k: even, or n - 1.
    Source: Bell et al. 2020, ePrint 2020/704, algorithm 1.
    """
    n = len(devices)
    if k >= n - 1:
        return {d: tuple(sorted(other for other in devices if other != d)) for d in devices}
    circle = sorted(devices, key=lambda d: hashlib.sha256(seed + d.encode()).digest())
    near = [*range(-(k // 2), 0), *range(1, k // 2 + 1)]
    return {d: tuple(sorted(circle[(i + j) % n] for j in near)) for i, d in enumerate(circle)}


def seed(sid: bytes, keys: Sequence[bytes]) -> bytes:
    """H(sid, all signed key messages in order): fixed only when the last device has signed its keys."""
    h = hashlib.sha256(b"edgewise/secagg/v1/graph" + sid)
    for raw in keys:
        h.update(len(raw).to_bytes(4, "little") + raw)
    return h.digest()
