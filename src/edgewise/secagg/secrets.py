"""What both sides derive from keys: sealing keys, pairwise and own masks, commitments. Every use has its own label."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from edgewise.crypto import prg
from edgewise.crypto.agree import Secret, derive
from edgewise.secagg.messages import PROTOCOL, digest
from edgewise.secagg.params import Params

Body = NDArray[np.uint32]
Head = NDArray[np.uint64]


def _info(label: str, *names: str) -> bytes:
    return digest(label.encode(), *(n.encode() for n in names))


def sealing_key(secret: Secret, peer: bytes, sid: bytes, sender: str, to: str) -> bytes:
    """The key of the one box that ``sender`` seals for ``to``."""
    return secret.agree(peer, sid, _info("seal", sender, to))


def bound(sid: bytes, sender: str, to: str) -> bytes:
    """What is authenticated with that box."""
    return digest(b"box", sid, sender.encode(), to.encode())


def pair_seed(secret: Secret, peer: bytes, sid: bytes, one: str, other: str) -> bytes:
    """The seed of the mask between two devices, the same for both."""
    return secret.agree(peer, sid, _info("mask", *sorted((one, other))))


def commitment(sid: bytes, device: str, seed: bytes) -> bytes:
    """Binds a device to the seed of its own mask without showing it (the seed has 256 random bits)."""
    return digest(b"commit", sid, device.encode(), seed)


class Hidden:
    """A body and a head under construction: residues, to which masks are added in place."""

    def __init__(self, params: Params, body: Body | None = None, head: Head | None = None) -> None:
        self.params = params
        self.body: Body = np.zeros(params.dim, np.uint32) if body is None else np.array(body, np.uint32)
        self.head: Head = np.zeros(params.heads, np.uint64) if head is None else np.array(head, np.uint64)

    def add(self, body: Body, head: Head) -> None:
        """Add residues."""
        np.add(self.body, body, out=self.body)
        np.bitwise_and(self.body, np.uint32((1 << self.params.bits) - 1), out=self.body)
        np.add(self.head, head, out=self.head)

    def mask(self, seed: bytes, sid: bytes, sign: int) -> None:
        """Add or take away the mask that a seed stands for: one key for the body, one for the head."""
        prg.add(self.body, derive(seed, sid, PROTOCOL + b"/body"), self.params.bits, sign)
        if self.head.size:
            prg.add(self.head, derive(seed, sid, PROTOCOL + b"/head"), 64, sign)

    def masks(self, device: str, seeds: Iterable[tuple[str, bytes]], sid: bytes, sign: int = 1) -> None:
        """The pairwise masks of ``device`` with others, as it adds them: plus where its name comes first."""
        for other, seed in seeds:
            self.mask(seed, sid, sign if device < other else -sign)
