"""A pseudo-random generator: the AES-256-CTR key stream of a 32-byte seed, as ring elements or as words for samplers.

A seed is a key and is used once: two expansions of one seed for two purposes would cancel each other's secrecy.
Primitive: AES in counter mode, NIST SP 800-38A, from the ``cryptography`` library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numba import njit
from numpy.typing import NDArray

SEED_BYTES = 32
LIMIT_BYTES = 1 << 36  # of one seed's key stream, 2^32 blocks: far below what counter mode may leak
_CHUNK_BYTES = 1 << 18  # of key stream at a time: stays in the second-level cache
_ZEROS = bytes(_CHUNK_BYTES)
_TAIL = 16  # update_into wants room for one block more

Ring = NDArray[np.uint32] | NDArray[np.uint64]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add(acc: NDArray[Any], words: NDArray[Any], mask: Any) -> None:
    word = acc.dtype.type  # two uint32 add up to a uint64 here, which would halve the width of the vector unit
    for i in range(acc.size):
        acc[i] = word(acc[i] + words[i]) & mask


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _subtract(acc: NDArray[Any], words: NDArray[Any], mask: Any) -> None:
    word = acc.dtype.type
    for i in range(acc.size):
        acc[i] = word(acc[i] - words[i]) & mask


class Words:
    """A seed's key stream, read in order: ``fill`` gives the next 64-bit words, whatever the sizes of the reads."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, this one {len(seed)}")
        self._stream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
        self._room = np.empty(_CHUNK_BYTES + _TAIL, np.uint8)
        self._used = 0

    def fill(self, out: NDArray[Any]) -> None:
        """Overwrite ``out`` (uint32[n] or uint64[n], contiguous) with the next words of the stream, little-endian.

        Raises ValueError beyond ``LIMIT_BYTES``.
        """
        view = out.view(np.uint8)
        for start in range(0, view.size, _CHUNK_BYTES):
            part = view[start : start + _CHUNK_BYTES]
            part[:] = self.take(part.size)

    def take(self, size: int) -> NDArray[np.uint8]:
        """The next ``size`` bytes, at most one chunk; overwritten by the next call."""
        self._used += size
        if self._used > LIMIT_BYTES:
            raise ValueError(f"a seed may give {LIMIT_BYTES} bytes, this would be more")
        self._stream.update_into(memoryview(_ZEROS)[:size], self._room.data)
        return self._room[:size]


def width(bits: int) -> type[np.uint32] | type[np.uint64]:
    """The word that holds residues modulo 2^bits. Raises ValueError outside 1 to 64."""
    if not 1 <= bits <= 64:
        raise ValueError(f"a ring has 1 to 64 bits, not {bits}")
    return np.uint32 if bits <= 32 else np.uint64


def add(acc: Ring, seed: bytes, bits: int, sign: int = 1) -> None:
    """``acc += sign PRG(seed) mod 2^bits``, in place and in one pass.

    Word i of the key stream belongs to coordinate i, so the result does not depend on how it is computed. Masking a
    uniform word to ``bits`` bits is exactly uniform.
    Args:
        acc: uint32[d] up to 32 bits, else uint64[d]; contiguous. seed: 32 bytes, used for nothing else.
        sign: 1 adds, -1 subtracts.
    Raises:
        ValueError: wrong dtype, sign or seed; d beyond ``LIMIT_BYTES``.
    """
    word = width(bits)
    if acc.dtype != word or not acc.flags.c_contiguous or acc.ndim != 1:
        raise ValueError(f"the sum must be a contiguous {word.__name__} vector")
    if acc.nbytes > LIMIT_BYTES:
        raise ValueError(f"a seed may give {LIMIT_BYTES} bytes, {acc.nbytes} are asked for")
    if sign not in (1, -1):
        raise ValueError(f"sign is {sign}, must be 1 or -1")
    step, mask = (_add if sign == 1 else _subtract), word((1 << bits) - 1)
    words, size = Words(seed), acc.itemsize
    for start in range(0, acc.size, _CHUNK_BYTES // size):
        part = acc[start : start + _CHUNK_BYTES // size]
        step(part, words.take(part.nbytes).view(word), mask)


def expand(seed: bytes, dim: int, bits: int) -> Ring:
    """PRG(seed): ``dim`` residues, uniform modulo 2^bits. Raises as ``add``."""
    out: Ring = np.zeros(dim, np.uint32) if width(bits) is np.uint32 else np.zeros(dim, np.uint64)
    add(out, seed, bits)
    return out
