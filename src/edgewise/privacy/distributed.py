"""Distributed discrete Gaussian noise: every device adds a share, so the server never sees an update without noise.

    device:  clip to C, rotate, q = round(scale x) with ||q||_2 <= D2, q + N_Z(0, S^2), mod 2^b
    sum:     lift, / scale, rotate back

    sl    = z C / sqrt(h)                                         noise of one device, model units; h honest survivors
    scale = sqrt(2^(2b) - n k^2) / (2 k sqrt(n^2 C^2 / B + n sl^2))  so that k standard deviations fit half the ring
    S     = ceil(scale sl),   L = scale C,   beta = exp(-1/2)
    D2    = min(L + sqrt(d), sqrt(L^2 + d/4 + sqrt(2 ln(1/beta)) (L + sqrt(d)/2)))
    tau   = 10 sum_(j=1)^(h-1) exp(-2 pi^2 S^2 j / (j+1))
    one release is (xi = tau d)-approximately (rho = D2^2 / (2 h S^2))-zCDP, zero-out adjacency

Here n is the number of possible contributions and d the number of coordinates. B is such that a coordinate of a rotated
vector of length r has a standard deviation of at most r / sqrt(B) over the random signs, for any vector
(``noise_evenness``). With B = d these are the paper's formulas. Blocks change the room in the ring only. rho and tau do
not depend on B, so neither does privacy.
Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, theorem 5 and section 4; Canonne et al. 2020, arXiv:2004.00010.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, exp, inf, pi, sqrt
from statistics import NormalDist
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.part import part
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Noise, Space
from edgewise.core.stage import Stage
from edgewise.privacy.samplers import LARGEST, discrete_gaussian, round_within_norm

BETA = exp(-0.5)  # largest probability that a rounding is repeated
INFLATION = 1.01  # largest D2 / L: rounding may cost as much as an update that is longer by this factor
WRAPPED = 0.01  # largest expected number of coordinates of a sum that leave the ring, per round
MOST_BITS = 32


@dataclass(frozen=True, slots=True)
class NoiseSizing:
    """Parameters of one round (see the module). ``z``: noise of h shares / C. ``rho``, ``xi``: of its release."""

    n: int
    honest: int
    z: float
    clip_l2: float
    dim: int
    bits: int
    scale: float
    s: int
    d2: float
    rho: float
    xi: float

    @property
    def inflation(self) -> float:
        """Ratio D2 / L."""
        return self.d2 / (self.scale * self.clip_l2)


def rounded_norm(l: float, dim: int) -> float:  # noqa: E741 (the paper's L)
    """Compute D2: a vector of norm L rounds to one of norm at most D2 with probability at least 1 - BETA."""
    return min(l + sqrt(dim), sqrt(l * l + dim / 4 + 1.0 * (l + sqrt(dim) / 2)))  # sqrt(2 ln(1/BETA)) = 1


def discrete_gaussian_gap(s: float, honest: int) -> float:
    """Compute tau: the distance of a sum of discrete Gaussians from a discrete Gaussian, per coordinate."""
    return 10.0 * sum(exp(-2.0 * pi**2 * s * s * j / (j + 1)) for j in range(1, honest))


def noise_wrap_deviations(dim: int) -> float:
    """Compute k, the standard deviations that half a ring must hold so that at most WRAPPED of ``dim`` coordinates
    leave it.

    This is for normal sums, which rotated updates and noise nearly are. For any vector a sum of random signs and noise
    is sub-Gaussian: at most 2 dim exp(-k^2 / 2) coordinates, some 15 times as many.
    """
    return NormalDist().inv_cdf(1.0 - WRAPPED / (2.0 * dim))


def size_noise(
    n: int, honest: int, z: float, clip_l2: float, dim: int, bits: int, k: float, block: int = 0
) -> NoiseSizing:
    """Compute the parameters for a ring of ``bits`` bits. ``block``: B, or 0 for d.

    Raises ValueError where the ring is too small for k standard deviations of n units.
    """
    local = z * clip_l2 / sqrt(honest)
    room = 2.0 ** (2 * bits) - n * k * k
    if room <= 0:
        raise ValueError(f"{bits} bits are too few")
    scale = sqrt(room) / (2.0 * k * sqrt(n * n * clip_l2**2 / (block or dim) + n * local**2))
    s, l2 = ceil(scale * local), scale * clip_l2
    d2 = rounded_norm(l2, dim)
    return NoiseSizing(
        n,
        honest,
        z,
        clip_l2,
        dim,
        bits,
        scale,
        s,
        d2,
        d2 * d2 / (2.0 * honest * s * s),
        discrete_gaussian_gap(s, honest) * dim,
    )


@lru_cache(maxsize=4096)
def fit_noise(n: int, honest: int, z: float, clip_l2: float, dim: int, block: int, bits: int | None) -> NoiseSizing:
    """Compute ``size`` for the smallest ring in which rounding costs at most INFLATION, or for ``bits``.

    Raises CompositionError: E-WRAP where the ring is too small, with the smallest in the fix. E-VALUE where the ring is
        so large that S is beyond the sampler.
    """
    k = noise_wrap_deviations(dim)
    least = None
    for many in range(8, MOST_BITS + 1):
        if 2.0 ** (2 * many) > n * k * k:
            found = size_noise(n, honest, z, clip_l2, dim, many, k, block)
            if found.inflation <= INFLATION and 1 <= found.s <= LARGEST:
                least = found
                break
    if least is None or (bits is not None and bits < least.bits):
        what = f"discrete_gaussian: a ring of {bits or MOST_BITS} bits is too coarse for this noise."
        fix = f"use bits = {least.bits} or more." if least else "fewer coordinates: LoRA, layers or random_k."
        raise CompositionError("E-WRAP", what, fix)
    if bits is None:
        return least
    found = size_noise(n, honest, z, clip_l2, dim, bits, k, block)
    if found.s > LARGEST:
        most = next(b for b in range(bits, 0, -1) if size_noise(n, honest, z, clip_l2, dim, b, k, block).s <= LARGEST)
        raise CompositionError(
            "E-VALUE",
            f"discrete_gaussian: in a ring of {bits} bits the noise has a scale of {found.s}, the sampler's largest is "
            f"{LARGEST}.",
            f"use bits = {most} or fewer, or leave it out: {least.bits} are enough.",
        )
    return found


def noise_evenness(space: Space) -> int:
    """Compute B of a rotated space: the shortest block's length, or half of it where one block is a Hartley block.

    A coordinate is sum_j s_j x_j t_j with random signs s, so its variance is sum_j x_j^2 t_j^2. Here t_j^2 is 1 / B in
    a Hadamard block and up to 2 / B in a Hartley block (cas^2 <= 2). An adversary puts x where it is that much.
    """
    rotation = space.rotation
    assert rotation is not None
    whole = rotation.dim % rotation.block == 0
    return rotation.shortest if whole else max(1, rotation.shortest // 2)


@part(name="discrete_gaussian")
def discrete_gaussian_noise(
    z: Annotated[float, Gt(0)], bits: Annotated[int | None, Ge(8), Le(MOST_BITS)] = None
) -> Stage:
    """Round to integers and add this device's share of the noise: exact discrete Gaussian of std S.

    Corrupt devices may leave their shares out. Together the shares of ``quorum.honest`` other devices have standard
    deviation >= z C in every coordinate of the sum, where C is the L2 bound before. Put ``clip`` in front, and
    ``rotate`` after it.
    Algebra: kind -> INTEGER for a ring of ``bits`` bits. l2 -> D2 / scale. noise: std S / scale, and ``rho``, ``xi`` of
        a round.
    Guarantees: the integers that the noise is added to have norm <= D2, whatever the update. Both randomnesses come
        from a CSPRNG keyed by the device. A sum of n encodings decodes to the sum of the inputs plus noise, except
        where it leaves the ring: at most 0.01 coordinates per round, each an error of the ring's size.
    Args:
        z: noise multiplier, above 0.
        bits: of the ring. None: the smallest in which rounding lengthens the bound by at most 1 %.
    Raises:
        CompositionError: E-ADJ-MIX where neighbours are not zero_out, or zeros are not sent as zeros;
            E-NOISE-NOCLIP without an L2 bound; E-ORDER without rotate right before it, and inside
            feedback (which would send the noise back later); E-TOPK-SECAGG after a per-device support or low_rank;
            E-NOT-REAL after a quantizer; E-STATS with metrics beside the update; E-WEIGHT with weights; E-NMIN where
            the round may end without an honest survivor; E-WRAP, E-VALUE where the ring does not fit; E-COMBO with a
            merge that sees each contribution.
    Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387.
    """
    name = f"discrete_gaussian({z:g})"

    def sizing(space: Space) -> NoiseSizing:
        return fit_noise(space.quorum.n_max, space.quorum.honest, z, space.l2, space.dim, noise_evenness(space), bits)

    def infer(space: Space) -> Space:
        require.real(space, name)
        require.neighbours_at_zero(space, name)
        if space.l2 == inf:
            raise CompositionError(
                "E-NOISE-NOCLIP",
                f"{name}: nothing bounds the length of an update, so no noise hides it.",
                "put clip before rotate.",
            )
        if space.sparse or space.rank:
            raise CompositionError(
                "E-TOPK-SECAGG",
                f"{name}: a device's choice of coordinates would show beside the noise.",
                "use random_k.",
            )
        if "weight" in space.head:
            raise CompositionError(
                "E-WEIGHT",
                f"{name}: the mean would be divided by a sum of weights, which carries no noise.",
                "leave out weigh: then all devices count the same and the divisor is their number.",
            )
        if space.head:
            raise CompositionError(
                "E-STATS", f"{name}: train losses would leave the device without noise.", 'write metrics = "none".'
            )
        if space.rotation is None or space.dim != space.rotation.dim:
            raise CompositionError(
                "E-ORDER",
                f"{name}: one large coordinate would leave the ring.",
                "put rotate right before it, after clip and after stages that shorten the vector.",
            )
        q = space.quorum
        if not q.honest:
            raise CompositionError(
                "E-NMIN",
                f"{name}: of {q.n_min} contributions up to {q.corrupt} may come without noise.",
                "raise round.minimum or the cohort, or assume fewer corrupt devices (trust.malicious_fraction).",
            )
        found = sizing(space)
        return space.but(
            grid=Grid(Kind.INTEGER, float(found.bits), 1.0 / found.scale, (1 << found.bits - 1) - 1),
            noise=Noise(found.s / found.scale, q.honest, found.rho, found.xi, found.bits),
            l2=found.d2 / found.scale,
            linf=inf,
            unbiased=False,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        found = sizing(space)
        y = payload.body.astype(np.float64) * found.scale
        q = round_within_norm(y, found.d2, turn.own("round", turn.round))
        q += discrete_gaussian(found.s, q.size, turn.own("noise", turn.round))
        half = 1 << (found.bits - 1)
        return payload.but(body=((q + half & (2 * half - 1)) - half).astype(np.int32)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload.but(body=(payload.body / sizing(space).scale).astype(np.float32))

    def says(before: Space, after: Space) -> str:
        return (
            f"rounds to {after.grid.bits:g}-bit integers, one public grid; adds noise of standard deviation "
            f"{after.noise.std:.4g} to every coordinate, {after.noise.honest} shares of which are sure in each sum"
        )

    return Stage(name, infer, encode, decode, says, pointwise=True)
