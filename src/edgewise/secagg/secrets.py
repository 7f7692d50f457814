"""Derivation of sealing keys, pairwise masks, own masks and commitments. Every use has its own label."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgewise.crypto import prg
from edgewise.crypto.agree import KEY_BYTES, AgreementSecret, hkdf_derive
from edgewise.secagg.messages import secagg_digest
from edgewise.secagg.params import Params

Body = NDArray[np.uint32]
Head = NDArray[np.uint64]


def _hkdf_info(label: str, *names: str) -> bytes:
    """Digest of a label and of names, to tell uses of one key apart."""
    return secagg_digest(label.encode(), *(n.encode() for n in names))


def fresh_secret(entropy: bytes, sid: bytes, role: str, device: str) -> bytes:
    """Derive 32 secret bytes of a device for one purpose in one session.

    Guarantees: entropy that is used in two sessions gives different secrets.
    Raises ValueError unless ``entropy`` has 32 bytes. Without entropy anybody could derive the same secrets.
    """
    if len(entropy) != KEY_BYTES:
        raise ValueError(f"entropy has {KEY_BYTES} bytes, this has {len(entropy)}")
    return hkdf_derive(entropy, sid, _hkdf_info("fresh", role, device))


def shamir_coins(shares: bytes, roster: bytes, kind: str) -> bytes:
    """Derive the seed of one secret's polynomial (``shamir.shamir_shares``).

    It depends on the roster, because other rosters have other thresholds and holders.
    """
    return hkdf_derive(shares, roster, _hkdf_info("polynomial", kind))


def sealing_keys(secret: AgreementSecret, peer: bytes, roster: bytes, me: str, other: str) -> tuple[bytes, bytes]:
    """Derive the key of the box that ``me`` seals for ``other``, and the key of the box that ``other`` seals for it."""
    both = hkdf_derive(secret.shared(peer), roster, _hkdf_info("seal", *sorted((me, other))), 2 * KEY_BYTES)
    up, down = both[:KEY_BYTES], both[KEY_BYTES:]  # ``up`` seals from the first name in order to the second.
    return (up, down) if me < other else (down, up)


def box_binding(roster: bytes, sender: str, to: str, checks: bytes) -> bytes:
    """Associated data that authenticates a box. ``checks``: the digests of both shares, 64 bytes."""
    return secagg_digest(b"box", roster, sender.encode(), to.encode(), checks)


def pair_seed(secret: AgreementSecret, peer: bytes, roster: bytes, one: str, other: str) -> bytes:
    """Derive the seed of the mask between two devices. Both get the same one."""
    return secret.agree(peer, roster, _hkdf_info("mask", *sorted((one, other))))


def mask_commitment(sid: bytes, device: str, seed: bytes) -> bytes:
    """Commitment of a device to the seed of its own mask. The seed has 256 random bits, so this does not show it."""
    return secagg_digest(b"commit", sid, device.encode(), seed)


def expand_mask(seed: bytes, context: bytes, heads: int) -> tuple[Head, prg.KeyStreamWords]:
    """Expand a seed to its mask of the update.

    Args: context: ``Params.bound``, or the session's id with two servers. heads: residues of the head.
    Returns: the mask of the head, which is the first words of a key stream, and the rest of the stream for the body.
    """
    stream, head = prg.KeyStreamWords(hkdf_derive(seed, context, _hkdf_info("stream"))), np.empty(heads, np.uint64)
    stream.fill(head)
    return head, stream


class Hidden:
    """Sum of residues, body and head, to which updates and masks are added in place."""

    def __init__(self, params: Params, body: Body | None = None, head: Head | None = None) -> None:
        self.params = params
        self.body: Body = np.zeros(params.dim, np.uint32) if body is None else np.array(body, np.uint32)
        self.head: Head = np.zeros(params.heads, np.uint64) if head is None else np.array(head, np.uint64)

    def add(self, body: Body, head: Head) -> None:
        """Add residues: body uint32[dim] modulo 2^bits, head uint64[heads] modulo 2^64."""
        np.add(self.body, body, out=self.body)
        np.bitwise_and(self.body, np.uint32((1 << self.params.bits) - 1), out=self.body)
        np.add(self.head, head, out=self.head)

    def mask(self, seeds: Iterable[tuple[bytes, int]], context: bytes) -> None:
        """Add (1) or subtract (-1) the masks of seeds."""

        def bodies() -> Iterator[tuple[prg.KeyStreamWords, int]]:
            for seed, sign in seeds:
                head, stream = expand_mask(seed, context, self.head.size)
                (np.add if sign == 1 else np.subtract)(self.head, head, out=self.head)
                yield stream, sign

        prg.add_masks(self.body, bodies(), self.params.bits)


def pairwise_masks(device: str, seeds: Iterable[tuple[str, bytes]]) -> Iterator[tuple[bytes, int]]:
    """Yield the seeds of the masks of ``device`` with others, with their signs: plus where its name sorts first."""
    for other, seed in seeds:
        yield seed, 1 if device < other else -1
