"""Noise on a grid: value and noise are integer multiples of one step, so no low bit tells them apart.

    q = round(x / step) + N_Z(0, S^2),  the output is a function of q;   step = 2^k,  2^23 < S <= 2^24

Floating point noise gives x away: where x + n is much smaller than x, its low bits show the grid of x. Integers have
one grid.

Accounting. Rounding moves neighbours apart by up to step sqrt(d) more, and S includes that. If the noise were a rounded
Gaussian, round(N(0, S^2)), then q would be round(x / step + N(0, S^2)) for an integer x / step. This is a function of
the continuous Gaussian mechanism's output, so every figure of that mechanism, with sampling and over rounds, would hold
as it is. The exact discrete Gaussian is as good as the rounded one. At each integer k the two differ by a factor of

    1 + (k^2 / S^2 - 1) / (24 S^2) + O(S^-4),

whose logarithms add up over d coordinates to sqrt(2 d) / (24 S^2) in standard deviation: below 1e-10 of epsilon for
d = 2^30 at S = 2^23.
Source: Mironov 2012 (the attack on floating point); Canonne, Kamath, Steinke 2020, arXiv:2004.00010 (the sampler).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, frexp, sqrt

import numpy as np
from numpy.typing import NDArray

from edgewise.core.errors import CompositionError
from edgewise.core.keys import Key
from edgewise.privacy.samplers import LARGEST, discrete_gaussian

COST = 0.1  # Rounding may move neighbours apart by at most this share of a device's own move.
_CHUNK = 1 << 18  # coordinates at a time, which bounds the temporary memory
_EXACT = 2.0**52  # Up to this number of steps float64 holds every integer, with room for the noise.


@dataclass(frozen=True, slots=True)
class NoiseGrid:
    """Grid and size of the noise. ``step``: a power of two, model units. ``s``: standard deviation in steps."""

    step: float
    s: int

    @property
    def std(self) -> float:
        """Standard deviation of the noise, model units."""
        return self.s * self.step


def fit_noise_grid(name: str, z: float, moved: float, dim: int, largest: float = 0.0) -> NoiseGrid:
    """Find the grid for noise of at least z (``moved`` + step sqrt(dim)).

    Args:
        name: of the part, for the error. moved: L2 distance of neighbours before rounding, model units.
        dim: number of rounded coordinates. largest: bound of one coordinate, model units.
    Raises:
        CompositionError(E-PRECISION) where rounding would move neighbours by more than a tenth of ``moved``, or where
        float64 does not hold every multiple of the step up to ``largest``.
    """
    step = 2.0 ** frexp(z * moved)[1] / LARGEST
    while (s := ceil(z * (moved + step * sqrt(dim)) / step)) > LARGEST:
        step *= 2.0
    if step * sqrt(dim) > COST * moved:
        raise CompositionError(
            "E-PRECISION",
            f"{name}: noise of {z:.4g} times the bound on {dim} coordinates has a grid so coarse that rounding to it "
            f"moves an update by {step * sqrt(dim) / moved:.2g} of its bound.",
            "use a smaller noise multiplier, or fewer coordinates: LoRA, layers or random_k.",
        )
    if largest > _EXACT * step:
        raise CompositionError(
            "E-PRECISION",
            f"{name}: noise of {z:.4g} times the bound is too fine for values of up to {largest:.3g}.",
            "use a larger noise multiplier, or a smaller cohort.",
        )
    return NoiseGrid(step, s)


def rounded_to_noise_grid(x: NDArray[np.floating], step: float) -> NDArray[np.int64]:
    """Round x to whole steps, half to even."""
    steps: NDArray[np.int64] = np.rint(np.divide(x, step, dtype=np.float64)).astype(np.int64)
    return steps


def grid_noise(grid: NoiseGrid, n: int, entropy: Key) -> NDArray[np.int64]:
    """Draw the noise of n coordinates, in steps. ``entropy``: 32 fresh secret bytes."""
    return discrete_gaussian(grid.s, n, entropy)


def noised_on_grid(x: NDArray[np.floating], grid: NoiseGrid, entropy: Key) -> NDArray[np.float64]:
    """Round x to the grid and add noise. Returns float64 in model units, exact multiples of the step."""
    steps = grid_noise(grid, x.size, entropy)
    out: NDArray[np.float64] = steps.view(np.float64)  # It reuses the memory of ``steps``, part by part.
    for at in range(0, x.size, _CHUNK):
        part = slice(at, at + _CHUNK)
        out[part] = (steps[part] + rounded_to_noise_grid(x[part], grid.step)) * grid.step
    return out
