"""Count sketch of the update: the same linear map on all devices, undone by the server, which keeps the memory."""

from __future__ import annotations

from math import comb, inf, sqrt
from statistics import NormalDist
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.compiled import compiled
from edgewise.core.errors import CompositionError, RecipeError, TrainingError
from edgewise.core.keys import Turn, derive, word
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space
from edgewise.core.stage import Head, ServerHalf, Stage, percent
from edgewise.core.vector import Vector
from edgewise.kernels.hashing import hashed_uniform

BLOCK = 1 << 18  # Coordinates estimated at a time. This bounds the temporary memory.
_HASHES = bytes(32)  # Every run, device and round uses these hashes, because the server's memory lives in their cells.

Positions = NDArray[np.int64]
Seeds = NDArray[np.uint64]  # one hash function per row


@compiled
def _sketch_cell(seed: np.uint64, i: int, cols: int) -> int:
    """Compute twice the column of coordinate i, plus 1 if its sign is negative. One uniform number decides both."""
    return int(hashed_uniform(seed, i) * np.float64(2 * cols))


@compiled
def _sketch_of(x: Vector, seeds: Seeds, cols: int) -> NDArray[np.float64]:
    """Compute S x, row after row."""
    table = np.zeros(seeds.size * cols, np.float64)
    for r in range(seeds.size):
        for i in range(x.size):
            t = _sketch_cell(seeds[r], i, cols)
            table[r * cols + (t >> 1)] += np.float64(x[i]) * (1 - 2 * (t & 1))
    return table


@compiled
def _estimate_from_cells(table: Vector, seeds: Seeds, cols: int, start: int, n: int, median: bool) -> Vector:
    """Estimate coordinates start..start+n-1 from their cells: median (of an odd number) or mean over the rows."""
    out = np.empty(n, np.float32)
    cells = np.empty(seeds.size, np.float64)
    for i in range(n):
        for r in range(seeds.size):
            t = _sketch_cell(seeds[r], start + i, cols)
            v = np.float64(table[r * cols + (t >> 1)]) * (1 - 2 * (t & 1))
            if median:  # Insert into the sorted values without branches.
                for j in range(r):
                    low = min(cells[j], v)
                    v = max(cells[j], v)
                    cells[j] = low
            cells[r] = v
        out[i] = np.float32(cells[seeds.size // 2] if median else cells.sum() / seeds.size)
    return out


@compiled
def _take_out(table: Vector, at: Positions, values: Vector, seeds: Seeds, cols: int) -> None:
    """Subtract S(values at positions ``at``) from the table, in place."""
    for r in range(seeds.size):
        for i in range(at.size):
            t = _sketch_cell(seeds[r], at[i], cols)
            table[r * cols + (t >> 1)] -= values[i] * np.float32(1 - 2 * (t & 1))


def sketch_noise_factor(rows: int, dim: int) -> float:
    """Bound the expected largest of ``dim`` estimates of zeros, in units of the rms of the cells.

    The median of ``rows`` normal numbers is above t only if h = (rows + 1) / 2 of them are. This has probability at
    most C(rows, h) Q(t)^h. t is the value at which this probability, times 2 and times ``dim``, is 1. For 5 rows it is
    2.3 at d = 5e4 and 3.0 at 1e8.
    """
    h = (rows + 1) // 2
    return NormalDist().inv_cdf(1.0 - (2.0 * dim * comb(rows, h)) ** (-1.0 / h))


@part
def sketch(
    ratio: Annotated[float, Gt(1), Doc("coordinates per cell; the sketch is this many times smaller")],
    rows: Annotated[int, Ge(1), Le(15), Doc("independent hashes; odd")] = 5,
    keep: Annotated[float, Gt(0), Le(1), Doc("largest share of coordinates released per round")] = 0.01,
    momentum: Annotated[float, Ge(0), Lt(1), Doc("in the sketch, on the server; not together with fedavgm's")] = 0.0,
    floor: Annotated[float, Ge(0), Le(4), Doc("in units of the collision noise; 0 = as published, diverges")] = 1.0,
) -> Stage:
    """Send a count sketch, the same linear map on all devices. The server finds the large coordinates in it.

    ``S x`` is a table of ``rows`` x ``cols`` sums of signed coordinates, cols = max(1, floor(d / (ratio rows))). Row r
    adds coordinate i with sign s_r(i) into the column h_r(i). Once a round the server computes, on the mean m of the
    sketches, with momentum u and error e (both zero before the first round):

        u = rho u + m;   e = e + u;   release D = shrink(top-k(median over rows of s_r(i) e[r, h_r(i)]));   e -= S D

    k = max(1, round(keep d)). ``shrink`` moves each estimate towards zero by ``floor * noise_factor * rms(e)``, and
    drops estimates that would change sign. This is the collision noise that the largest of d empty coordinates reaches.
    ``floor = 0`` is the published step. It diverges, on a quadratic too, as soon as the top k are not all heavy
    hitters. With hashes that never change, released noise lies where the sketch cannot see it, and nothing takes it
    back. Shrinking by the noise cannot lengthen the error. Smaller coordinates wait in e, so dense updates without
    heavy coordinates move nothing. The momentum of released cells is *not* zeroed, unlike in the paper's code. With the
    floor that only cost accuracy. ``rho`` is a momentum of its own. A fedavgm or fedadam on top doubles it. The step
    tends to 1 / (1 - rho) times the mean, so lower the strategy's lr when rho rises.

    Algebra: linear, summable. dim -> rows cols. l2 = linf = inf (colliding coordinates add up), so clip or clamp the
    sketch. Biased. Contributions are merged as sketches. ``decode``, the mean over rows of s_r(i) cell, is linear and
    unbiased over hash functions, and serves to compare the blind and the visible merge.
    Memory: on the server, float32[rows cols] for the error and, with rho > 0, for the momentum. None on devices.
    Guarantees: hashes are counter-based and the same in every run and round, so a restored memory fits. Sums run in
    float64 in the order of coordinates. Hashes are public. A device that knows them can aim at any cell, as it also can
    by sending any table. Time O(rows d) on both sides. Memory O(d) for the release, 2^18 estimates at a time.
    Edge cases: zero estimates are never released. Of equal magnitudes the lowest positions are released.
    Args:
        momentum: rho.
    Raises:
        RecipeError: E-VALUE.
        CompositionError: E-NOT-REAL. E-ORDER if positions before it change every round (the memory would mix them).
            E-VALUE for an update too small to be sketched.
        TrainingError: E-RANGE if a cell overflows float32.
    Source: Rothchild et al. 2020 (FetchSGD), arXiv:2007.07682, algorithm 1. Charikar, Chen, Farach-Colton 2002 (count
    sketch). Donoho 1995 (soft thresholding at the largest of d noises).
    """
    name = f"sketch({ratio:g}, {rows}x)"
    if rows % 2 == 0:
        raise RecipeError("E-VALUE", f"sketch: rows is {rows}, and a median needs an odd number.", f"use {rows + 1}.")
    seeds = np.array([word(derive(_HASHES, "sketch", r)) for r in range(rows)], np.uint64)
    rho = np.float32(momentum)

    def cols(space: Space) -> int:
        return max(1, int(space.dim / (ratio * rows)))

    def infer(space: Space) -> Space:
        require.real(space, name)
        fix = "leave out the stage that chooses positions."
        require.still(space, name, "the server's memory would mix them up", fix)
        cells = rows * cols(space)
        if cells >= space.dim:
            raise CompositionError(
                "E-VALUE",
                f"{name}: its {cells} cells are no fewer than the {space.dim} coordinates of the update.",
                "sketch larger updates only.",
            )
        return space.but(dim=cells, l2=inf, linf=inf, unbiased=False)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        with np.errstate(over="ignore"):
            body = _sketch_of(payload.body, seeds, cols(space)).astype(np.float32)
        if not np.isfinite(body).all():
            raise TrainingError("E-RANGE", f"{name}: sums of coordinates overflow float32.", "clip before it.")
        return payload.but(body=body), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload.but(body=_estimate_from_cells(payload.body, seeds, cols(space), 0, space.dim, False))

    def init(space: Space) -> Memory:
        blank = np.zeros(rows * cols(space), np.float32)
        return Memory({"error": blank, "momentum": blank} if momentum else {"error": blank})

    def absorb(mean: Vector, n: int, memory: Memory, space: Space, turn: Turn, head: Head) -> tuple[Vector, Memory]:
        u = rho * memory["momentum"] + mean if momentum else mean
        error: Vector = memory["error"] + u
        rms = sqrt(float(np.square(error, dtype=np.float64).mean()))
        threshold = np.float32(floor * sketch_noise_factor(rows, space.dim) * rms)
        positions, values = _heaviest(error, cols(space), space, threshold)
        _take_out(error, positions, values, seeds, cols(space))
        released = np.zeros(space.dim, np.float32)
        released[positions] = values
        return released, Memory({"error": error, "momentum": u} if momentum else {"error": error})

    def _heaviest(table: Vector, width: int, space: Space, threshold: np.float32) -> tuple[Positions, Vector]:
        """Find the k largest estimates above ``threshold``, moved towards zero by it, and their positions."""
        k = max(1, round(keep * space.dim))
        positions, values = np.zeros(0, np.int64), np.zeros(0, np.float32)
        for start in range(0, space.dim, BLOCK):
            block = _estimate_from_cells(table, seeds, width, start, min(BLOCK, space.dim - start), True)
            large = np.flatnonzero(np.abs(block) > threshold)
            positions, values = np.concatenate([positions, start + large]), np.concatenate([values, block[large]])
            if positions.size > k:
                largest = np.sort(np.argsort(-np.abs(values), kind="stable")[:k])
                positions, values = positions[largest], values[largest]
        return positions, values - np.copysign(threshold, values)

    def says(before: Space, after: Space) -> str:
        size = percent(before, after)
        return f"sums of coordinates, {size} of their number; the server undoes it on the mean, with memory"

    return Stage(name, infer, encode, decode, says, server=ServerHalf(init, absorb, encoded=True))
