"""Domain-separated randomness. Every random choice names its purpose.

A ``Key`` is 32 bytes. ``derive`` is a keyed BLAKE2b over length-prefixed labels, so two different label tuples cannot
collide by concatenation. Nothing in edgewise uses a global generator. Anyone who knows the seed can repeat everything
derived here, so it is no secret. A simulation takes its noise from here on purpose, so that runs repeat. A server must
not.

>>> key = derive(root(7), "cohort", 3)
>>> len(key), key == derive(root(7), "cohort", 4)
(32, False)
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
    """Make the key of a whole run from the recipe's seed, any non-negative integer. Raises ValueError below 0."""
    if seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    return hashlib.blake2b(f"edgewise/seed/{seed}".encode(), digest_size=KEY_BYTES).digest()


def derive(key: Key, *labels: str | int | bytes) -> Key:
    """Derive a key for one purpose: BLAKE2b-256(key; len(l1) l1 len(l2) l2 ...).

    Args:
        key: 32 bytes.
        labels: the purpose of the key, e.g. ``derive(k, "cohort", round)``. Ints, strings and bytes are type-tagged, so
            ``1``, ``"1"`` and ``b"1"`` give different keys.
    Raises:
        ValueError: ``key`` has another length. An empty key would make public what looks secret.
    """
    mac = hashlib.blake2b(key=_of_key_length(key), digest_size=KEY_BYTES)
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
    """Make a numpy generator (counter-based Philox, 128-bit key) for choices that need no secrecy."""
    return np.random.Generator(np.random.Philox(_Words(_of_key_length(key))))  # type: ignore[arg-type]  # numpy's stub leaves ISeedSequence out


class _Words(ISeedSequence):
    """Hand Philox its key unchanged.

    ``Philox(key=...)`` makes the same stream. But it also reads the system's random source for a seed that it does not
    use, which takes twice as long as everything else.
    """

    def __init__(self, key: Key) -> None:
        self._words = np.frombuffer(key, "<u8", 2).astype(np.uint64)

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> NDArray[np.uint64]:
        return self._words


def word(key: Key) -> int:
    """Return the first 63 bits of a key as an int, for generators that take one integer (torch, kernels)."""
    return int.from_bytes(_of_key_length(key)[:8], "little") >> 1


def _of_key_length(key: Key) -> Key:
    """Return a key of the right length. Raises ValueError for another length."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes, this one has {len(key)}")
    return key


@dataclass(frozen=True, slots=True)
class Secrets:
    """A device's own randomness for one attempt at a round. Nobody else has it, and no recipe or seed leads to it.

    Attributes: 32 bytes each.
        training: for noise and the draw of records while the device trains.
        encoding: for noise and stochastic rounding of its update.
        session: for keys, shares and sealed reports of secure aggregation.
    Raises:
        ValueError: a key has another length, for example an empty one.
    """

    training: Key = field(repr=False)
    encoding: Key = field(repr=False)
    session: Key = field(repr=False)

    def __post_init__(self) -> None:
        """Check the lengths of the keys."""
        for key in (self.training, self.encoding, self.session):
            _of_key_length(key)

    @classmethod
    def of(cls, entropy: Key) -> Secrets:
        """Derive all three keys from 32 fresh bytes of the system's generator. Raises ValueError for another length."""
        return cls(derive(entropy, "training"), derive(entropy, "encoding"), derive(entropy, "session"))


@dataclass(frozen=True, slots=True)
class Turn:
    """Facts that a codec may know about the moment: the round, its public key, and this device's own key.

    Attributes:
        public: key that the server announces, equal on all devices of the round (shared supports, rotations, grids).
        private: key that never leaves the device (noise, stochastic rounding). None on the server.
        support: int64[], announced like ``public``: increasing positions of the largest coordinates of the last
            release, for stages whose ``Space.announced`` asks for them. Empty before the first release.
        clip: the round's clip, model units, announced like ``public``, if it adapts to the updates. None if it is
            fixed.
        budget_bytes: bytes that the device may upload in this round. It measures them itself and never sends them.
        device: the device whose contribution it is. None on the server if contributions are added before decoding.
        before: kinds of the stages before those that get the turn (``core.stage.placed``).
    """

    round: int
    public: Key
    private: Key | None = field(default=None, repr=False)
    support: NDArray[np.int64] | None = field(default=None, repr=False)
    budget_bytes: float = inf
    clip: float | None = None
    device: str | None = None
    before: tuple[str, ...] = ()

    def own(self, *labels: str | int | bytes) -> Key:
        """Derive a key for one purpose that this device alone has (``derive``). Raises ValueError on the server."""
        if self.private is None:
            raise ValueError("this turn has no private key. Only a device that encodes has one.")
        return derive(self.private, *labels)
