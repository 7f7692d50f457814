"""Domain-separated randomness: every random choice names what it is for.

A ``Key`` is 32 bytes. ``derive`` is a keyed BLAKE2b over length-prefixed labels, so no two different label tuples can
collide by concatenation. Nothing in edgewise uses a global generator. Everything derived here can be repeated by who
knows the seed, so it is no secret: a simulation's noise comes from here on purpose (runs repeat), a server's must not.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from math import inf

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

Key = bytes
KEY_BYTES = 32


def root(seed: int) -> Key:
    """The key of a whole run, from the recipe's integer seed (any non-negative integer)."""
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return hashlib.blake2b(f"edgewise/seed/{seed}".encode(), digest_size=KEY_BYTES).digest()


def derive(key: Key, *labels: str | int | bytes) -> Key:
    """A new key for one purpose: BLAKE2b-256(key; len(l1) l1 len(l2) l2 ...).

    Args:
        key: 32 bytes. Raises ValueError for another length: an empty key would make public what looks secret.
        labels: what the key is for, e.g. ``derive(k, "cohort", round)``; ints, strings and bytes are type-tagged, so
            ``1``, ``"1"`` and ``b"1"`` give different keys.
    """
    mac = hashlib.blake2b(key=_whole(key), digest_size=KEY_BYTES)
    for label in labels:
        if isinstance(label, int):
            raw = b"i" + str(label).encode()
        elif isinstance(label, str):
            raw = b"s" + label.encode()
        else:
            raw = b"b" + label
        mac.update(len(raw).to_bytes(8, "little") + raw)
    return mac.digest()


def generator(key: Key) -> np.random.Generator:
    """A numpy generator (counter-based Philox, 128-bit key) for choices that need no secrecy."""
    return np.random.Generator(np.random.Philox(_Words(_whole(key))))  # type: ignore[arg-type]  # numpy's stub leaves ISeedSequence out


class _Words(ISeedSequence):
    """Gives Philox its key as it is. ``Philox(key=...)`` makes the same stream, but reads the system's random source
    for a seed that it does not use, which takes twice the time of all the rest."""

    def __init__(self, key: Key) -> None:
        self._words = np.frombuffer(key, "<u8", 2).astype(np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> NDArray[np.uint64]:
        return self._words


def word(key: Key) -> int:
    """The first 63 bits of a key as an int, for generators that take one integer (torch, kernels)."""
    return int.from_bytes(_whole(key)[:8], "little") >> 1


def _whole(key: Key) -> Key:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, this one has {len(key)}")
    return key


@dataclass(frozen=True, slots=True)
class Secrets:
    """A device's own randomness for one attempt at a round. Nobody else has it, and no recipe or seed leads to it.

    Attributes: 32 bytes each.
        training: noise and the draw of records while the device trains.
        encoding: noise and stochastic rounding of its update.
        session: keys, shares and sealed reports of secure aggregation.
    Raises: ValueError for a key of another length, so an empty one.
    """

    training: Key = field(repr=False)
    encoding: Key = field(repr=False)
    session: Key = field(repr=False)

    def __post_init__(self) -> None:
        """See the class."""
        for key in (self.training, self.encoding, self.session):
            _whole(key)

    @classmethod
    def of(cls, entropy: Key) -> Secrets:
        """All three from 32 fresh bytes of the system's generator. Raises ValueError for another number of bytes."""
        return cls(derive(entropy, "training"), derive(entropy, "encoding"), derive(entropy, "session"))


@dataclass(frozen=True, slots=True)
class Turn:
    """What a codec may know about the moment: the round, its public key, and this device's own key.

    Attributes:
        public: announced by the server, equal on all devices of the round (shared supports, rotations, grids).
        private: never leaves the device (noise, stochastic rounding); None on the server.
        support: announced likewise: int64[], increasing positions of the largest coordinates of the last release, for
            stages whose ``Space.announced`` asks for them; empty before the first release.
        clip: announced likewise: the round's clip, model units, where it follows the updates; None: it is fixed.
        budget_bytes: what the device may upload in this round, measured by itself; never sent.
        device: whose contribution it is; empty on the server where contributions are added before they are decoded.
        before: kinds of the stages that stand before those to which the turn is given (``core.stage.placed``).
    """

    round: int
    public: Key
    private: Key | None = field(default=None, repr=False)
    support: NDArray[np.int64] | None = field(default=None, repr=False)
    budget_bytes: float = inf
    clip: float | None = None
    device: str = ""
    before: tuple[str, ...] = ()

    def own(self, *labels: str | int | bytes) -> Key:
        """A key that this device alone has, for one purpose (``derive``). Raises ValueError on the server."""
        if self.private is None:
            raise ValueError("this turn has no private key: only a device that encodes has one")
        return derive(self.private, *labels)
