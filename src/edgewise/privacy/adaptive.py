"""Adaptive clipping: a clip that follows a quantile of the updates' norms, which it estimates privately.

    b_i = 1 if ||x_i|| <= C else 0;   C <- C exp(-eta (mean b - gamma)),  the mean from a noised sum
    z_delta = (z^-2 - (r / sigma_b)^2)^(-1/2),   sigma_b = m / 20

A device sends its bit as b - r. Here r is the distance of b - r from the value sent in its place in the neighbouring
data set. Where a device is there or not ("add_remove"), r = 1/2. Where its update is zero or not ("zero_out"), r = 1:
the zero update is below C and has b = 1, so it sends 0.
A device sends the update in units of C, and b - r as one more coordinate, times s = z_delta / sigma_b. One noise of z
times the joint bound sqrt(1 + r^2 s^2) then is z_delta on the update and sigma_b on the sum of bits. The two together
cost exactly as much as z alone. A device that was expected and sends nothing counts as a bit of r.
Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871, algorithm 1 and theorem 1 (for r = 1/2).
"""

from __future__ import annotations

from math import exp, hypot, sqrt

import numpy as np

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Adjacency, Space
from edgewise.core.stage import BELOW, Head, ServerHalf, Stage
from edgewise.core.vector import Vector, norm_l2
from edgewise.privacy.clip import HAIR, LARGEST, SMALLEST

CLIP = "clip"  # name in the server's memory: float64[1], C of the next round
QUANTILE, RATE = 0.5, 0.2


def bit_noise(cohort: float) -> float:
    """Compute sigma_b, the standard deviation of the noise on the sum of bits, for a cohort of m."""
    return cohort / 20.0


def _reach(adjacency: Adjacency) -> float:
    """Compute r. A device sends b - r, which lies within r of the value sent in its place (see the module)."""
    return 1.0 if adjacency == "zero_out" else 0.5


def split_noise_multiplier(z: float, sigma_b: float, adjacency: Adjacency) -> float:
    """Compute z_delta, the update's multiplier with which update and bit together cost as much as z alone.

    Raises CompositionError(E-VALUE) where the bit alone would cost more: z must be below sigma_b / r.
    """
    r = _reach(adjacency)
    if z >= sigma_b / r:
        raise CompositionError(
            "E-VALUE",
            f"adaptive clipping: a noise multiplier of {z:.4g} is needed, and {sigma_b / r:.4g} on the bit alone takes "
            "the whole budget.",
            "a larger cohort, a larger budget, or a fixed clip.",
        )
    return 1.0 / sqrt(z**-2 - (r / sigma_b) ** 2)


def reachable_clips(start: float, releases: int, quantile: float = QUANTILE, rate: float = RATE) -> tuple[float, float]:
    """Compute the least and largest C after at most ``releases`` releases: every mean b is 1, or every one 0."""
    least, most = (start * exp(min(rate * releases * toward, 700.0)) for toward in (quantile - 1.0, quantile))
    return max(least, SMALLEST), min(most, LARGEST)


def adaptive_clip(start: float, z: float, cohort: float, quantile: float = QUANTILE, rate: float = RATE) -> Stage:
    """Clip to the round's C, which begins at ``start`` and follows the ``quantile`` of the updates' norms.

    Algebra: the body is in units of C from here on: l2 -> 1. One head scalar more, within r s. Zeros stay zeros where
    neighbours are at zero. The server multiplies the mean by C again (``ServerHalf``), after noise and division.
    Guarantees: the float64 norm of the clipped body is at most 1. C depends on noised sums only.
    Args:
        start: C of round 0, model units. z: the noise multiplier that body and bit share. cohort: m, expected.
        quantile: gamma, the target share of updates below C. rate: eta.
    Raises: CompositionError (when folded): E-VALUE (see ``split_noise_multiplier``), E-NOT-REAL after a quantizer.
    """
    require.between("dp.clip_l2", start, SMALLEST, LARGEST)
    name = f"adaptive_clip({start:g})"

    def weight(space: Space) -> float:
        """Compute s."""
        return split_noise_multiplier(z, bit_noise(cohort), space.adjacency) / bit_noise(cohort)

    def infer(space: Space) -> Space:
        require.real(space, name)
        longest = weight(space) * _reach(space.adjacency)
        return space.but(
            l2=1.0,
            linf=1.0,
            head=(*space.head, BELOW),
            head_l2=hypot(space.head_l2, longest),
            keeps_zero=space.keeps_zero and space.adjacency == "zero_out",
            unbiased=False,
            clipped=True,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        clip = start if turn.clip is None else turn.clip
        norm = norm_l2(payload.body)
        body = np.multiply(payload.body, HAIR / max(norm, clip), dtype=np.float64).astype(np.float32)
        bit = (1.0 if norm <= clip else 0.0) - _reach(space.adjacency)
        return payload.but(body=body, head=np.append(payload.head, weight(space) * bit)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    def init(space: Space) -> Memory:
        return Memory({CLIP: np.array([start])})

    def absorb(mean: Vector, n: int, memory: Memory, space: Space, turn: Turn, head: Head) -> tuple[Vector, Memory]:
        clip = float(memory[CLIP][0])
        below = min(max(head[BELOW] / weight(space) + _reach(space.adjacency), 0.0), 1.0)
        new = min(max(clip * exp(-rate * (below - quantile)), SMALLEST), LARGEST)
        return (mean * np.float32(clip)).astype(np.float32), Memory({CLIP: np.array([new])})

    def says(before: Space, after: Space) -> str:
        return (
            "L2 norm at most 1, in units of a clip that follows the norms; sends whether the update was below it; the "
            "server undoes it on the mean, with memory"
        )

    return Stage(name, infer, encode, decode, says, server=ServerHalf(init, absorb, encoded=False))
