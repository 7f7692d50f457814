"""Conversion of integers to residues of a ring, the only values that masks can hide and a blind sum can add."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Space
from edgewise.core.stage import Stage

LARGEST = 32  # Bits of the largest ring, because a residue is a uint32.


def ring_grid(grid: Grid, bits: int) -> Grid:
    """Make the grid of the residues modulo 2^bits of the integers of ``grid``."""
    return replace(grid, kind=Kind.RING, modulus=1 << bits, bits=float(bits))


@part
def wrap(
    bits: Annotated[int | None, Ge(2), Le(LARGEST), Doc("default: the smallest ring that holds the sum")] = None,
) -> Stage:
    """Turn integers into residues modulo 2^bits: ``q mod 2^bits``.

    Decoding lifts to the centred residue in [-2^(b-1), 2^(b-1)).

    Algebra: kind -> RING, modulus 2^bits. All bounds stay.
    Guarantees: if at most ``n_max`` contributions are added, lift(sum mod 2^bits) is exactly the integer sum. After
    noise, which has no largest value, this holds except in the few coordinates that ``discrete_gaussian`` allows for.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-INTEGER before a quantizer. E-TOPK-SECAGG for per-device supports. E-NOT-SUMMABLE if
            scales travel per block. E-WRAP if 2^(bits-1) <= n_max * level_max, or if noise is scaled for another ring.
    Source: Bonawitz et al. 2017 (SecAgg), section 4. Two's complement lift.
    """
    name = "wrap" if bits is None else f"wrap({bits})"

    def width(space: Space) -> int:
        if bits is not None:
            return bits
        return space.noise.ring_bits or (space.quorum.n_max * space.grid.level_max).bit_length() + 1

    def infer(space: Space) -> Space:
        if space.rungs:
            raise CompositionError(
                "E-RUNG", f"{name}: residues of different grids cannot be added.", "fix one codec instead of a ladder."
            )
        if space.grid.kind is not Kind.INTEGER:
            raise CompositionError(
                "E-NOT-INTEGER",
                f"{name}: it needs integers, and the body before it is {space.grid.kind.value}.",
                'put quantize(grid="shared") before it, and use only one wrap.',
            )
        if space.sparse:
            raise CompositionError(
                "E-TOPK-SECAGG",
                f"{name}: each device chose other positions, so masked vectors could not be added, and the choice "
                "itself reveals data.",
                "use random_k or shared_top_k instead of top_k.",
            )
        if space.grid.scale == 0.0 or not space.summable:
            raise CompositionError(
                "E-NOT-SUMMABLE",
                f"{name}: every device has its own scales, so their integers cannot be added.",
                'use quantize(grid="shared").',
            )
        need, many = space.quorum.n_max * space.grid.level_max, width(space)
        if space.noise.ring_bits:
            if many != space.noise.ring_bits:
                raise CompositionError(
                    "E-WRAP",
                    f"{name}: the noise before it is scaled for a ring of {space.noise.ring_bits} bits.",
                    "leave out bits here.",
                )
            return space.but(grid=ring_grid(space.grid, many))
        modulus = 1 << many
        if many > LARGEST or modulus // 2 <= need:
            raise CompositionError(
                "E-WRAP",
                f"{name}: {space.quorum.n_max} contributions of up to {space.grid.level_max} reach {need}, "
                f"and the ring holds less than {1 << min(many, LARGEST) - 1}.",
                f"use wrap({need.bit_length() + 1}) or more, or quantize to fewer bits."
                if need.bit_length() < LARGEST
                else "quantize to fewer bits.",
            )
        return space.but(grid=ring_grid(space.grid, many))

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        mask = np.uint32((1 << width(space)) - 1)
        return payload.but(body=payload.body.astype(np.int32, copy=False).view(np.uint32) & mask), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        shift = np.int32(LARGEST - width(space))  # The arithmetic shift to the right extends the sign.
        return payload.but(body=payload.body.astype(np.uint32, copy=False).view(np.int32) << shift >> shift)

    def says(before: Space, after: Space) -> str:
        return f"residues modulo 2^{(after.grid.modulus - 1).bit_length()}"

    return Stage(name, infer, encode, decode, says, pointwise=True)
