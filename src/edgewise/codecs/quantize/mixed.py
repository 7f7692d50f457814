"""Mixed precision: each part of the update gets a bit width of its own, under one budget of bytes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from edgewise.codecs.quantize.quantize import quantized_growth
from edgewise.codecs.quantize.scales import SLACK, block_scales
from edgewise.codecs.wire import pack
from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.kernels.bits import pack_bits, packed_bytes, unpack_bits
from edgewise.kernels.rounding import round_levels, unround

BLOCK = 64  # coordinates per scale
WIDTHS = (0, 2, 3, 4, 5, 6, 7, 8)  # Bits per coordinate that a part may have. A part with 0 is not sent.


@part
def mixed(
    spec: Spec,
    bits: Annotated[float, Ge(0.1), Le(8.5), Doc("average per coordinate, scales included")] = 3.25,
) -> Stage:
    """Send few bits per coordinate, with more bits for the layers that need them most. Use it inside feedback.

    Block quantization with a width per segment: minimise ``sum_l E_l(b_l)`` under ``sum_l bytes_l(b_l) <= budget``.
    E_l(b) is the expected squared error of rounding segment l to b bits, computed from its values: ``sum_i step^2 f_i
    (1 - f_i)``, with f_i the position of coordinate i between two grid points. E_l(0) = ||x_l||^2. The budget is
    ``floor(bits d / 8)`` bytes for scales and integers, so ``bits = 3.25`` equals the size of ``quantize(3)``. The
    widths travel in front, 4 bits a segment.

    The search is greedy on error saved per byte (optimal on convex curves up to its last step). It runs once from
    nothing and once from the largest equal width that fits. The better result is taken.

    Algebra: scale 0 (travels). Not summable. Biased (a segment may not be sent, so use ``feedback``). l2 times the
    largest ``block_growth``, linf times 1 + 2^-7.
    Guarantees: its expected error is never above that of the best uniform width in the same bytes, nor above ||x||^2.
    Deterministic given turn.private.
    Edge cases: a zero vector sends widths of 0 and nothing else.
    Args:
        spec: layout of the vector before it.
        bits: average bits per coordinate, scales included.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL. E-ORDER if the vector is not the one of ``spec``.
    Source: Kimad (layer-wise budgets as a knapsack), arXiv:2312.08053, section 3.2.
    """
    name = f"mixed({bits:g})"
    sizes = tuple(s.size for s in spec.segments)
    stops = np.cumsum(sizes)
    starts = stops - sizes
    layout = MixedWidths(sizes, int(bits * spec.dim / 8))
    growth = max(quantized_growth(BLOCK, 2 ** (b - 1) - 1) for b in WIDTHS if b)

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.sparse or space.moving or space.dim != spec.dim:
            raise CompositionError(
                "E-ORDER",
                f"{name}: it needs whole segments, all {spec.dim} coordinates.",
                "put it before stages that choose or mix coordinates.",
            )
        return space.but(
            grid=Grid(Kind.INTEGER, float(bits), 0.0, 127, block=BLOCK), layout=layout,
            summable=False, unbiased=False,
            l2=space.l2 * growth, linf=space.linf * SLACK,
        )  # fmt: skip

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        x, body = payload.body, np.zeros(payload.body.size, np.int8)
        scales = [block_scales(x[a:b], BLOCK) for a, b in zip(starts, stops, strict=True)]
        errors = np.array([width_errors(x[a:b], s, BLOCK) for a, b, s in zip(starts, stops, scales, strict=True)])
        widths = allocate_widths(errors, bytes_of_widths(sizes), layout.budget_bytes)
        for i, (a, b, width) in enumerate(zip(starts, stops, widths.tolist(), strict=True)):
            if width:
                top = 2 ** (width - 1) - 1
                inverse = np.divide(top, scales[i], out=np.zeros(scales[i].size), where=scales[i] > 0, dtype=np.float64)
                seed = np.uint64(word(turn.own("mixed", turn.round, i)))
                round_levels(x[a:b], inverse, BLOCK, top, seed, body[a:b])
        sent = [s for s, width in zip(scales, widths, strict=True) if width]
        return payload.but(body=body, scales=np.concatenate([np.zeros(0, np.float32), *sent]), widths=widths), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        assert payload.scales is not None
        assert payload.widths is not None
        x, at = np.zeros(spec.dim, np.float32), 0
        for a, b, width in zip(starts, stops, payload.widths.tolist(), strict=True):
            if width:
                n = -(-(b - a) // BLOCK)
                steps = payload.scales[at : at + n].astype(np.float64) / (2 ** (width - 1) - 1)
                x[a:b] = unround(payload.body[a:b], steps, BLOCK)
                at += n
        return payload.but(body=x, scales=None, widths=None)

    def says(before: Space, after: Space) -> str:
        return f"rounds to {bits:g} bits per coordinate on average, with more for the layers that need them most"

    return Stage(name, infer, encode, decode, says)


@compiled
def width_errors(x: NDArray[np.float32], scales: NDArray[np.float32], block: int) -> NDArray[np.float64]:
    """Compute the expected squared error of rounding x to 0, 1, ..., 8 bits with these scales. 1 bit: inf.

    Returns:
        float64[9].
    """
    out = np.zeros(9)
    out[1] = np.inf
    for b in range(scales.size):
        scale = np.float64(scales[b])
        for i in range(b * block, min(x.size, (b + 1) * block)):
            v = np.abs(np.float64(x[i]))
            out[0] += v * v
            for bits in range(2, 9):
                if scale > 0.0:
                    step = scale / ((1 << (bits - 1)) - 1)
                    q = v / step
                    f = q - np.floor(q)
                    out[bits] += step * step * f * (1.0 - f)
                else:
                    out[bits] += v * v
    return out


def bytes_of_widths(sizes: Sequence[int], block: int = BLOCK) -> NDArray[np.int64]:
    """Compute the bytes of scales and integers of each part at each width: int64[parts, 9]."""
    out = np.zeros((len(sizes), 9), np.int64)
    for i, size in enumerate(sizes):
        for bits in range(1, 9):
            out[i, bits] = 2 * -(-size // block) + packed_bytes(size, bits)
    return out


def allocate_widths(errors: NDArray[np.float64], sizes: NDArray[np.int64], budget_bytes: int) -> NDArray[np.uint8]:
    """Choose a width for each part, of small total error within the budget (see ``mixed``).

    Args:
        errors, sizes: [parts, 9], by width.
        budget_bytes: for all parts together. 0 gives widths of 0.
    Returns:
        uint8[parts].
    """
    zero = np.zeros(len(errors), np.uint8)
    alike = [np.full(len(errors), b, np.uint8) for b in WIDTHS if sizes[:, b].sum() <= budget_bytes]
    ends = [_widen_parts(start, errors, sizes, budget_bytes) for start in (zero, alike[-1])]
    rows = np.arange(len(errors))
    return min(ends, key=lambda widths: float(errors[rows, widths].sum()))


def _widen_parts(
    start: NDArray[np.uint8], errors: NDArray[np.float64], sizes: NDArray[np.int64], budget_bytes: int
) -> NDArray[np.uint8]:
    """Widen one part after the other, where a byte saves the most error, until nothing fits or helps."""
    widths = start.copy()
    rows = np.arange(len(errors))
    remaining = budget_bytes - int(sizes[rows, widths].sum())
    heap: list[tuple[float, int, int]] = []

    def offer(i: int) -> None:
        now = int(widths[i])
        best = (0.0, i, now)
        for to in WIDTHS:
            more = int(sizes[i, to] - sizes[i, now])
            saved = float(errors[i, now] - errors[i, to])
            if to > now and more <= remaining and saved > 0.0:
                best = min(best, (-saved / max(1, more), i, to))
        if best[2] > now:
            heapq.heappush(heap, best)

    for i in rows.tolist():
        offer(i)
    while heap:
        _, i, to = heapq.heappop(heap)
        more = int(sizes[i, to] - sizes[i, widths[i]])
        if more <= remaining:  # Otherwise the budget has shrunk since the offer, and a smaller step is offered.
            widths[i] = to
            remaining -= more
        offer(i)
    return widths


@dataclass(frozen=True, slots=True)
class MixedWidths:
    """Layout (``core.space.Layout``) of mixed widths: head, widths, scales and integers of the parts that are sent.

    Widths take 4 bits a part. The integers of each part are padded to a byte.

    Attributes:
        sizes: lengths of the consecutive parts of the body.
        budget_bytes: largest number of bytes for scales and integers.
    """

    sizes: tuple[int, ...]
    budget_bytes: int

    @property
    def rungs(self) -> tuple[Space, ...]:
        """Empty, because all payloads are in the same space."""
        return ()

    @property
    def width_bytes(self) -> int:
        """Bytes of the packed widths."""
        return packed_bytes(len(self.sizes), 4)

    def size_bytes(self, space: Space) -> float:
        """Largest number of bytes of a payload."""
        return 8 * len(space.head) + self.width_bytes + self.budget_bytes

    def pack(self, payload: Payload, space: Space) -> bytes:
        """Write a payload, as ``core.space.Layout`` says."""
        head, widths = pack.pack_head(payload, space), payload.widths
        if widths is None or widths.shape != (len(self.sizes),) or not np.isin(widths, WIDTHS).all():
            raise ValueError("widths missing, or not of this space")
        out: list[bytes | memoryview] = [pack.pack_scales(payload.scales, self._sent_blocks(widths))]
        at = 0
        for size, width in zip(self.sizes, widths.tolist(), strict=True):
            levels = payload.body[at : at + size]
            at += size
            top = 2 ** (width - 1) - 1 if width else 0
            if levels.size and int(np.abs(levels.astype(np.int16)).max()) > top:
                raise ValueError("level out of range")
            if width:
                out.append(pack_bits((levels + np.int8(top)).view(np.uint8), width))
        if sum(map(len, out)) > self.budget_bytes:
            raise ValueError("above the budget")
        return b"".join([head, pack_bits(widths, 4), *out])

    def unpack(self, view: memoryview, space: Space) -> Payload:
        """Read a payload, as ``core.space.Layout`` says."""
        first = 8 * len(space.head)
        if not first + self.width_bytes <= len(view) <= self.size_bytes(space):
            pack.refuse_payload(f"{len(view)} bytes, expected at most {self.size_bytes(space)}")
        at = first + self.width_bytes
        widths = unpack_bits(view[first:at], 4, len(self.sizes))
        if widths is None or not np.isin(widths, WIDTHS).all():
            pack.refuse_payload("no such widths")
        widths = widths.astype(np.uint8)
        scale_bytes = 2 * self._sent_blocks(widths)
        lengths = [packed_bytes(size, w) for size, w in zip(self.sizes, widths.tolist(), strict=True)]
        need = scale_bytes + sum(lengths)
        if len(view) - at != need or need > self.budget_bytes:
            pack.refuse_payload(f"{len(view) - at} bytes, its widths take {need}")
        scales = pack.unpack_scales(view[at : at + scale_bytes])
        body, at, start = np.zeros(space.dim, np.int8), at + scale_bytes, 0
        for size, width, length in zip(self.sizes, widths.tolist(), lengths, strict=True):
            if width:
                top = 2 ** (width - 1) - 1
                levels: NDArray[Any] | None = unpack_bits(view[at : at + length], width, size)
                if levels is None or (levels.size and int(levels.max()) > 2 * top):
                    pack.refuse_payload("a level is out of range, or padding is not zero")
                body[start : start + size] = (levels.astype(np.int16) - top).astype(np.int8)
            at, start = at + length, start + size
        return Payload(body, pack.unpack_head(view, space), None, scales, widths=widths)

    def _sent_blocks(self, widths: NDArray[np.uint8]) -> int:
        """Count the scales of the parts that are sent."""
        return sum(-(-size // BLOCK) for size, width in zip(self.sizes, widths.tolist(), strict=True) if width)
