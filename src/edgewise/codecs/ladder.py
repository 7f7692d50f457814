"""Ladder of codecs: each device chooses the largest rung that its link and time allow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan

from edgewise.codecs.wire import pack
from edgewise.core import require
from edgewise.core.decoding import undo
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Stage, placed


def pick_rung(budget_bytes: float, sizes: Sequence[float]) -> int:
    """Choose the rung with the most bytes among those that fit: ``argmax {s_i : s_i <= budget}``, the first of equals.

    If none fits, choose the smallest. It may be late, but it is the best that the device can do.

    Args:
        budget_bytes: bytes that may be sent. inf means that everything fits.
        sizes: bytes of each rung, in any order, not empty.
    Raises:
        ValueError: no sizes, or a budget that is not a number (own misuse).
    """
    if not sizes or isnan(budget_bytes):
        raise ValueError("pick needs rungs and a budget that is a number")
    fitting = [i for i, size in enumerate(sizes) if size <= budget_bytes]
    if not fitting:
        return min(range(len(sizes)), key=lambda i: sizes[i])
    return max(fitting, key=lambda i: (sizes[i], -i))


@dataclass(frozen=True, slots=True)
class NumberedRungs:
    """Layout (``core.space.Layout``) of a ladder: the rung's number, then the payload in the rung's own layout.

    The number is LEB128 in its shortest form.
    """

    rungs: tuple[Space, ...]

    @property
    def sizes(self) -> tuple[float, ...]:
        """Bytes of one packed payload of each rung, its number included."""
        return tuple(len(_leb128(i)) + pack.size_bytes(rung) for i, rung in enumerate(self.rungs))

    def size_bytes(self, space: Space) -> float:
        """Bytes of one packed payload of the largest rung."""
        return max(self.sizes)

    def pack(self, payload: Payload, space: Space) -> bytes:
        """Write a payload, as ``core.space.Layout`` says."""
        if payload.rung is None or not 0 <= payload.rung < len(self.rungs):
            raise ValueError(f"no rung {payload.rung} among {len(self.rungs)}")
        return _leb128(payload.rung) + pack.pack(payload, self.rungs[payload.rung])

    def unpack(self, view: memoryview, space: Space) -> Payload:
        """Read a payload, as ``core.space.Layout`` says."""
        rung, length = _unpack_varint(view)
        if rung >= len(self.rungs):
            pack.refuse_payload(f"rung {rung} of {len(self.rungs)}")
        return pack.unpack(view[length:], self.rungs[rung]).but(rung=rung)


def rung_bytes(space: Space) -> tuple[float, ...]:
    """List the bytes of one packed payload of each rung, its number included. Empty if there are no rungs."""
    return space.layout.sizes if isinstance(space.layout, NumberedRungs) else ()


def _leb128(number: int) -> bytes:
    """Write a number as LEB128: seven bits a byte, least significant first.

    All bytes but the last have the top bit set.
    """
    out = bytearray()
    while number > 127:
        out.append(128 | (number & 127))
        number >>= 7
    return bytes([*out, number])


def _unpack_varint(view: memoryview) -> tuple[int, int]:
    """Read a number, and count the bytes that it took: at most two, and no more than needed."""
    length = 1 if len(view) and view[0] < 128 else 2
    if len(view) < length or view[length - 1] > 127:
        pack.refuse_payload("no rung number")
    if length == 2 and not view[1]:
        pack.refuse_payload("a rung number is longer than needed")
    return sum((byte & 127) << 7 * i for i, byte in enumerate(view[:length])), length


def ladder(rungs: Sequence[Sequence[Stage]]) -> Stage:
    """Encode by one of ``rungs``, ``pick(turn.budget_bytes, sizes)``. Its number travels in front.

    A ladder stands inside ``feedback``. One residual, a - decode(m), then serves all rungs: a larger rung later sends
    the part that a small one leaves out today. A rung that stretches the coordinates it keeps leaves no residual.

    Algebra: ``Space.rungs`` = the space after each rung. l2, linf, gain and quantized are the largest over the rungs.
    Unbiased if all rungs are. Not summable (different grids). The other fields are those of the rung with the most
    bytes.
    Guarantees: the same budget gives the same choice. The server learns the rung and nothing else of the budget.
    Args:
        rungs: chains of stages, at least one. An empty chain sends float32.
    Raises:
        RecipeError: E-VALUE without rungs.
        CompositionError: E-NOT-REAL. E-ORDER for a rung with memory or a weight of its own. E-RUNG under a blind sum
            (``core.pipeline.pipeline``). All errors of the stages.
    Source: Kimad, arXiv:2312.08053, section 3 (a compressor from the bandwidth of each worker and round).
    """
    chains = tuple(tuple(rung) for rung in rungs)
    name = f"ladder({len(chains)} rungs)"
    require.between("ladder: number of rungs", len(chains), 1, 2**14)

    def fold(space: Space, chain: Sequence[Stage]) -> list[Space]:
        spaces = [space]
        for stage in chain:
            spaces.append(stage.infer(spaces[-1]))
        return spaces

    def infer(space: Space) -> Space:
        require.real(space, "ladder")
        ends = tuple(fold(space, chain)[-1] for chain in chains)
        for chain, end in zip(chains, ends, strict=True):
            if end.head != space.head or end.memory != space.memory or any(s.server is not None for s in chain):
                raise CompositionError(
                    "E-ORDER",
                    f"ladder: the rung {' > '.join(s.name for s in chain)} weighs, or keeps memory of its own.",
                    "put weigh before the ladder and feedback around it.",
                )
        largest = max(ends, key=pack.size_bytes)
        return largest.but(
            layout=NumberedRungs(ends),
            l2=max(end.l2 for end in ends),
            linf=max(end.linf for end in ends),
            gain=max(end.gain for end in ends),
            spread=max(end.spread for end in ends),
            quantized=max(end.quantized for end in ends),
            moving=any(end.moving for end in ends),
            unbiased=all(end.unbiased for end in ends),
            keeps_zero=all(end.keeps_zero for end in ends),
            summable=False,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        chosen = pick_rung(turn.budget_bytes, rung_bytes(infer(space)))
        chain = chains[chosen]
        for i, (stage, before) in enumerate(zip(chain, fold(space, chain), strict=False)):
            payload, _ = stage.encode(payload, Memory(), before, placed(turn, chain, i))
        return payload.but(rung=chosen), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        assert payload.rung is not None, "a payload of a ladder names its rung"
        chain = chains[payload.rung]
        return undo(chain, fold(space, chain), payload.but(rung=None), turn)

    def says(before: Space, after: Space) -> str:
        sizes = rung_bytes(after)
        return (
            f"each device sends by one of {len(sizes)} rungs, {min(sizes):,.0f} to {max(sizes):,.0f} bytes, as its own "
            "link and time allow; a random share of the coordinates is scaled up, so that the mean is right"
        )

    return Stage(name, infer, encode, decode, says, takes_support=True)
