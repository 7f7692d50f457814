"""Encode activations and gradients of split learning, token by token. The bytes are those of ``codecs.wire.pack``.

    codec = TokenCodec("int8", hidden=768)
    raw = codec.encode(x_NC)                    # N tokens: 768 + 2 bytes each
    y_NC = codec.decode(raw, tokens=N)

Formula, for int8 (L = 127) and int4 (L = 7), with one scale s per token, its largest magnitude rounded up to bfloat16:

    level = round(x L / s),    y = level s / L

Shape suffixes: N = tokens, C = width between blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.quantize.scales import block_scales
from edgewise.codecs.wire import pack
from edgewise.core.errors import DecodeError
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Quorum, Space
from edgewise.kernels.rounding import round_blocks, to_bfloat16, unround

Rounding = Literal["float32", "bf16", "int8", "int4"]
LEVELS = {"int8": 127, "int4": 7}  # levels on each side of zero
WORDS = 1 << 16  # number of 16-bit words
GRIDS = {
    "float32": Grid(),
    "bf16": Grid(Kind.RING, 16.0, modulus=WORDS),
    "int8": Grid(Kind.INTEGER, 8.0, 0.0, LEVELS["int8"]),
    "int4": Grid(Kind.INTEGER, 4.0, 0.0, LEVELS["int4"]),
}
ALONE = Quorum(1, 1)
NO_HEAD = np.zeros(0)
_HIGH, _HALF, _SIGN = np.uint32(16), np.uint32(0x7FFF), np.uint32(0x7FFFFFFF)
_INFINITE = np.uint32(0x7F800000)


@dataclass(frozen=True)
class TokenCodec:
    """One direction of one crossing.

    Attributes:
        rounding: "float32" changes nothing. "bf16" keeps 8 significant bits. "int8" and "int4" share a scale per
            token.
        hidden: C, numbers per token.
    """

    rounding: Rounding
    hidden: int

    def space(self, tokens: int) -> Space:
        """Return the space that fixes the bytes of N tokens."""
        grid = replace(GRIDS[self.rounding], block=self.hidden if self.rounding in LEVELS else 0)
        return Space(tokens * self.hidden, ALONE, grid=grid)

    def size_bytes(self, tokens: int) -> int:
        """Compute the bytes of N tokens, which do not depend on their values."""
        return int(pack.size_bytes(self.space(tokens)))

    def encode(self, x_NC: NDArray[np.float32], seed: int | None = None) -> bytes:
        """Encode float32[N, C].

        Args:
            seed: decides stochastic rounding, which has no bias. None rounds to the nearest value.
        Raises:
            ValueError: for another shape, or a value that is not finite.
        """
        if x_NC.ndim != 2 or x_NC.shape[1] != self.hidden:
            raise ValueError(f"shape {x_NC.shape}, expected (tokens, {self.hidden})")
        x = np.ascontiguousarray(x_NC, np.float32).reshape(-1)
        if not np.isfinite(x).all():
            raise ValueError("a value is not finite")
        return pack.pack(self._payload(x, seed), self.space(len(x_NC)))

    def decode(self, raw: bytes | memoryview, tokens: int) -> NDArray[np.float32]:
        """Decode float32[N, C]. Raises DecodeError(E-PAYLOAD) for bytes that ``encode`` does not write."""
        payload = pack.unpack(raw, self.space(tokens))
        body = payload.body
        if self.rounding == "bf16":
            words = body << _HIGH
            if words.size and ((words & _SIGN) >= _INFINITE).any():
                raise DecodeError("E-PAYLOAD", "invalid payload: a value is not finite.")
            body = words.view(np.float32)
        elif self.rounding in LEVELS:
            assert payload.scales is not None
            body = unround(body, payload.scales.astype(np.float64) / LEVELS[self.rounding], self.hidden)
        return body.reshape(tokens, self.hidden)

    def _payload(self, x: NDArray[np.float32], seed: int | None) -> Payload:
        if self.rounding == "float32":
            return Payload(x, NO_HEAD)
        if self.rounding == "bf16":
            if seed is not None:
                words = np.empty(x.size, np.uint16)
                to_bfloat16(x, np.uint64(seed), words)
                return Payload(words.astype(np.uint32), NO_HEAD)
            bits = x.view(np.uint32)
            nearest = (bits + _HALF + ((bits >> _HIGH) & np.uint32(1))) >> _HIGH
            huge = (nearest & np.uint32(0x7FFF)) >= np.uint32(0x7F80)  # Rounding up may reach infinity.
            return Payload(np.where(huge, nearest - np.uint32(1), nearest), NO_HEAD)
        top = LEVELS[self.rounding]
        if seed is not None:
            body = np.empty(x.size, np.int8)
            return Payload(body, NO_HEAD, scales=round_blocks(x, self.hidden, top, np.uint64(seed), body))
        scales = block_scales(x, self.hidden)
        inverse = np.divide(top, scales, out=np.zeros_like(scales), where=scales > 0)
        levels = np.rint(x.reshape(-1, self.hidden) * inverse[:, None])
        return Payload(np.clip(levels, -top, top).astype(np.int8).reshape(-1), NO_HEAD, scales=scales)
