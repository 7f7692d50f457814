"""Pseudo-random generator: the AES-256-CTR key stream of a 32-byte seed, as ring elements or as words for samplers.

A seed is a key and is used once. Two expansions of one seed for two purposes would destroy each other's secrecy.
Primitive: AES in counter mode, NIST SP 800-38A, from the ``cryptography`` library.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from edgewise.core.compiled import compiled

SEED_BYTES = 32
LIMIT_BYTES = 1 << 36  # Key stream of one seed: 2^32 blocks, far below the limits of counter mode.
_CHUNK_BYTES = 1 << 18  # Key stream at a time. In smaller chunks, calls cost more than caches save.
_TOGETHER = 4  # Key streams that are added in one pass over the sum.
_ZEROS = memoryview(bytes(_CHUNK_BYTES))

Ring = NDArray[np.uint32] | NDArray[np.uint64]


@compiled
def _add_one(acc: NDArray[Any], a: NDArray[Any], sign: Any, mask: Any) -> None:
    word, wide = a.dtype.type, acc.dtype.type  # Two words would add up to a uint64, which is slow on vector units.
    for i in range(acc.size):
        acc[i] = wide(acc[i] + wide(word((a[i] ^ sign) - sign))) & mask


@compiled
def _add_four_masks(acc: NDArray[Any], words: NDArray[Any], signs: NDArray[Any], mask: Any) -> None:
    word, wide = words.dtype.type, acc.dtype.type
    a, b, c, d = words[0], words[1], words[2], words[3]
    p, q, r, s = signs[0], signs[1], signs[2], signs[3]
    for i in range(acc.size):
        one = word(word((a[i] ^ p) - p) + word((b[i] ^ q) - q))
        other = word(word((c[i] ^ r) - r) + word((d[i] ^ s) - s))
        acc[i] = wide(acc[i] + wide(word(one + other))) & mask


class KeyStreamWords:
    """A seed's key stream, read in order. ``fill`` gives the next words, whatever the sizes of the earlier reads.

    Raises:
        ValueError: the seed does not have 32 bytes.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, this one has {len(seed)}")
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        self._used = 0

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite ``out`` (words of any size, contiguous) with the next words of the stream, little-endian.

        Raises:
            ValueError: the seed would give more than ``LIMIT_BYTES``.
        """
        view = out.view(np.uint8)
        self._used += view.size
        if self._used > LIMIT_BYTES:
            raise ValueError(f"a seed may give {LIMIT_BYTES} bytes, this would be more")
        for start in range(0, view.size, _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            self._stream.update_into(_ZEROS[: part.size], part.data)


def random_coins(seed: bytes, n: int, rate: float) -> NDArray[np.bool_]:
    """Draw ``n`` independent coins, each true with probability ``rate`` to within 2^-53.

    A coin is true if u < rate, with u a 53-bit fraction of the seed's key stream. Use it for draws whose secrecy a
    privacy guarantee relies on (amplification by sampling).

    Returns:
        bool[n].
    Edge cases: no coin is true at rate 0, all are at rate 1.
    """
    words = np.empty(n, np.uint64)
    KeyStreamWords(seed).fill(words)
    fractions = (words.astype("<u8", copy=False) >> np.uint64(11)) * np.float64(2.0**-53)
    return np.asarray(fractions < rate, np.bool_)


def _residue_dtype(bits: int) -> type[np.uint32] | type[np.uint64]:
    """Choose the word that holds residues modulo 2^bits. Raises ValueError outside 1 to 64."""
    if not 1 <= bits <= 64:
        raise ValueError(f"a ring has 1 to 64 bits, not {bits}")
    return np.uint32 if bits <= 32 else np.uint64


def _stream_word(bits: int) -> type[np.uint16] | type[np.uint32] | type[np.uint64]:
    """Choose the word of a key stream that gives one residue. Up to 16 bits it is half as wide. Raises as ``width``."""
    return np.uint16 if 1 <= bits <= 16 else _residue_dtype(bits)


def add_masks(acc: Ring, masks: Iterable[tuple[KeyStreamWords, int]], bits: int) -> None:
    """Add masks to a sum: ``acc += sum over (stream, sign) of sign stream mod 2^bits``, in place.

    Each byte of key stream is touched once. The i-th next word of a key stream (``_stream_word``) belongs to coordinate
    i, so the result does not depend on the way it is computed. A uniform word cut to ``bits`` bits is exactly uniform.

    Args:
        acc: uint32[d] up to 32 bits, else uint64[d]. Contiguous, below 2^bits.
        masks: (key stream, sign) pairs, each with another stream. Sign 1 adds, -1 subtracts. Four are taken from
            ``masks`` at a time.
        bits: bits of the ring, 1 to 64.
    Raises:
        ValueError: wrong dtype or sign, or d beyond ``LIMIT_BYTES``.
    """
    wide, word = _residue_dtype(bits), np.dtype(_stream_word(bits))
    if acc.dtype != wide or not acc.flags.c_contiguous or acc.ndim != 1:
        raise ValueError(f"the sum must be a contiguous {wide.__name__} vector")
    mask, whole = wide((1 << bits) - 1), (1 << 8 * word.itemsize) - 1
    step = _CHUNK_BYTES // word.itemsize
    room = np.empty((_TOGETHER, step), word)
    terms = iter(masks)
    while batch := list(islice(terms, _TOGETHER)):
        if any(sign not in (1, -1) for _, sign in batch):
            raise ValueError("a sign must be 1 or -1")
        signs = np.array([0 if sign == 1 else whole for _, sign in batch], word)  # x ^ ~0 - ~0 = -x
        for start in range(0, acc.size, step):
            part = acc[start : start + step]
            words = room[:, : part.size]
            for (stream, _), row in zip(batch, words, strict=False):
                stream.fill(row)
            if len(batch) == _TOGETHER:
                _add_four_masks(part, words, signs, mask)
                continue
            for row, sign in zip(words, signs, strict=False):
                _add_one(part, row, sign, mask)


class MaskStream:
    """A key stream that is added (sign 1) or subtracted (-1) piece by piece. ``add_masks`` does the same to a whole
    vector.

    Raises:
        ValueError: the sign is neither 1 nor -1.
    """

    def __init__(self, stream: KeyStreamWords, sign: int, bits: int) -> None:
        if sign not in (1, -1):
            raise ValueError("a sign must be 1 or -1")
        word = np.dtype(_stream_word(bits))
        self._stream, self._words = stream, np.empty(0, word)
        self._sign = word.type(0 if sign == 1 else (1 << 8 * word.itemsize) - 1)
        self._mask = _residue_dtype(bits)((1 << bits) - 1)

    def add(self, piece: Ring) -> None:
        """Add the key stream to the next coordinates, in place."""
        if self._words.size < piece.size:
            self._words = np.empty(piece.size, self._words.dtype)
        self._stream.fill(self._words[: piece.size])
        _add_one(piece, self._words[: piece.size], self._sign, self._mask)


def expand_seed(seed: bytes, dim: int, bits: int) -> Ring:
    """Compute PRG(seed): ``dim`` residues, uniform modulo 2^bits. Raises as ``add_masks``."""
    out: Ring = np.zeros(dim, np.uint32) if _residue_dtype(bits) is np.uint32 else np.zeros(dim, np.uint64)
    add_masks(out, [(KeyStreamWords(seed), 1)], bits)
    return out
