"""Damage to byte streams, and what a strict decoder owes whatever comes: refuse it, or have meant exactly it."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Turn
from edgewise.core.pipeline import Pipeline
from edgewise.core.space import Space

KINDS = ("flip", "cut", "insert", "delete", "splice", "graft", "random", "length", "extend", "zero")
_LENGTHS = (
    b"\xc6",
    b"\xc9",
    b"\xdb",
    b"\xdd",
    b"\xdf",
)  # MessagePack: binary, extension, string, array, map of 2^32 - 1


@dataclass(frozen=True)
class Damage:
    """One mutation; ``at`` and ``n`` are taken modulo whatever they count, ``seed`` makes bytes."""

    kind: str
    at: int
    n: int
    seed: int

    def __call__(self, raw: bytes, other: bytes) -> bytes:
        """``raw`` damaged; ``other`` is a second valid stream of the same layout."""
        at, n = self.at % (len(raw) + 1), 1 + self.n % 16
        noise = np.random.default_rng(self.seed)
        match self.kind:
            case "flip":
                out = bytearray(raw)
                for i in noise.integers(0, max(1, len(raw)), n % 4 + 1) if raw else ():
                    out[i] ^= 1 << int(noise.integers(0, 8))
                return bytes(out)
            case "cut":
                return raw[:at]
            case "insert":
                return raw[:at] + noise.bytes(n) + raw[at:]
            case "delete":
                return raw[:at] + raw[at + n :]
            case "splice":
                return raw[:at] + other[at:]
            case "graft":
                return raw[:at] + other[self.n % (len(other) + 1) :]
            case "random":
                return noise.bytes(len(raw))
            case "length":
                return raw[:at] + _LENGTHS[self.n % len(_LENGTHS)] + b"\xff" * 4 + raw[at + 5 :]
            case "extend":
                return raw + (bytes(n) if self.seed % 2 else raw)
            case "zero":
                return raw[:at] + bytes(min(n, len(raw) - at)) + raw[at + n :]
        raise ValueError(self.kind)


def limit_bytes(space: Space) -> int:
    """Bytes that decoding one stream may allocate, whatever it holds: linear in what the space announces."""
    return 24 * space.dim + 10 * space.universe + 8 * len(space.head) + 32_768


def payload_is_strict(raw: bytes, pipe: Pipeline, turn: Turn) -> bool:
    """Tell whether bytes decode. If so, their payload packs to the same bytes, and the sum takes or refuses it by code.

    Raises AssertionError for a decoder that is not strict; any exception but DecodeError comes through.
    """
    try:
        payload = pack.unpack(raw, pipe.encoded)
    except DecodeError as e:
        _named(e, "E-PAYLOAD")
        return False
    assert pack.pack(payload, pipe.encoded) == raw, "two streams mean the same"
    try:
        with np.errstate(all="ignore"):
            pipe.add(pipe.start_sum(), payload, turn)
    except DecodeError as e:
        _named(e, "E-PAYLOAD", "E-RANGE")
    return True


def frame_is_strict(raw: bytes) -> bool:
    """As ``payload_is_strict`` for whole frames."""
    try:
        message = frame.load(raw)
    except DecodeError as e:
        _named(e, "E-FRAME", "E-FRAME-SIZE")
        return False
    assert frame.dump(message) == raw, "two frames mean the same"
    return True


def peak_bytes(raw: bytes, space: Space) -> int:
    """Largest allocation of Python and numpy while ``raw`` is decoded; ``tracemalloc`` must be running.

    What compiled kernels allocate themselves is not seen: arrays of the announced length, never of one that was read.
    """
    before = tracemalloc.get_traced_memory()[0]
    tracemalloc.reset_peak()
    with suppress(DecodeError):
        pack.unpack(raw, space)
    return tracemalloc.get_traced_memory()[1] - before


def _named(error: DecodeError, *codes: str) -> None:
    assert error.code in codes, error
