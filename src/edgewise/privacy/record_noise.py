"""Records under secure aggregation: a device sums clipped gradients of its records, and adds its share of the noise.

    record i:   q_i = round(g_i min(1, C / ||g_i||) / step),   so ||q_i||_2 <= D2 = C / step + sqrt(d) / 2
    device:     sum_i q_i + N_Z(0, S^2)  mod 2^b,   over at most R of its records
    sum:        lift, step / R                      a mean over R records of each device

    step = 2^floor(log2(2 (INFLATION - 1) C / sqrt(d)))      rounding lengthens a record by at most 1 %
    S    = ceil(z C / (step sqrt(h)))                        h honest survivors
    2^(b-1) > n R D2 + k sqrt(n) S                           n contributions with all their noise fit into the ring
    one release is (xi = tau d)-approximately (rho = D2^2 / (2 h S^2))-zCDP for one record

Each record is rounded by itself, before it is added. So one record moves the integer sum by a vector of norm D2 at
most, whatever the others are, and its presence changes no other record's part. A device's whole contribution moves it
by up to R times as much, which no epsilon here covers. R is public and fixed, so the mean does not tell how many
records there are. tau is that of ``privacy.distributed``.
Source: Kairouz, Liu, Steinke 2021, arXiv:2102.06387, theorem 5; Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, inf, log2, sqrt

import numpy as np

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.space import Grid, Kind, Noise, Space
from edgewise.core.stage import Stage
from edgewise.core.vector import Spec
from edgewise.privacy.distributed import INFLATION, MOST_BITS, discrete_gaussian_gap, noise_wrap_deviations
from edgewise.privacy.samplers import LARGEST, discrete_gaussian

_EXACT = 2.0**22  # A float32 update holds every sum of a device exactly up to this number of steps.


@dataclass(frozen=True, slots=True)
class RecordNoiseSizing:
    """Parameters of one round (see the module). ``d2``: in steps. ``rho``, ``xi``: of its release, for one record."""

    step: float
    d2: float
    s: int
    bits: int
    rho: float
    xi: float


def record_step(clip_l2: float, dim: int) -> float:
    """Compute the step of the grid on which a record's clipped gradient is rounded, in model units: a power of two."""
    return float(2.0 ** floor(log2(2.0 * (INFLATION - 1.0) * clip_l2 / sqrt(dim))))


@lru_cache(maxsize=1024)
def size_record_noise(n: int, honest: int, z: float, clip_l2: float, records: int, dim: int) -> RecordNoiseSizing:
    """Compute the parameters for ``n`` contributions, of which ``honest`` surely carry their noise.

    Raises:
        CompositionError: E-PRECISION where float32 does not hold a device's sum exactly; E-WRAP where no ring of 32
            bits holds the sum; E-VALUE where the noise is beyond the sampler.
    """
    step = record_step(clip_l2, dim)
    d2 = clip_l2 / step + sqrt(dim) / 2.0
    name, less = "record sums", "lower dp.records, or train fewer parameters: LoRA or layers."
    if records * d2 > _EXACT:
        what = f"{name}: float32 does not hold the sum of {records:,} records of {dim:,} parameters exactly."
        raise CompositionError("E-PRECISION", what, less)
    s = ceil(z * clip_l2 / (step * sqrt(honest)))
    if s > LARGEST:
        what = f"{name}: noise of {z:.4g} times the clip has a scale of {s}, the sampler's largest is {LARGEST}."
        raise CompositionError("E-VALUE", what, "use a smaller dp.noise_multiplier, or fewer parameters.")
    reach = n * records * d2 + noise_wrap_deviations(dim) * sqrt(n) * s
    bits = max(8, floor(log2(reach)) + 2)
    if bits > MOST_BITS:
        what = f"{name}: {n:,} devices of {records:,} records with their noise need a ring of {bits} bits."
        raise CompositionError("E-WRAP", what, less)
    return RecordNoiseSizing(
        step, d2, s, bits, d2 * d2 / (2.0 * honest * s * s), discrete_gaussian_gap(s, honest) * dim
    )


def record_noise(spec: Spec, z: float, clip_l2: float, records: int) -> Stage:
    """Turn a device's sum of rounded records into integers, and add this device's share of the noise.

    The update that enters is -step / records times the sum of ``dp_sgd.clipped_sum``.
    Algebra: kind -> INTEGER. l2 -> D2 step: ``records`` times what one record moves. noise: std S step / records, and
        ``rho``, ``xi`` of a round for one record.
    Guarantees: the integers of an honest device pass unchanged. Those of a longer update are shortened to
        ``records`` D2. Noise comes from a CSPRNG keyed by the device.
    Args:
        spec: layout of the whole update. z: noise multiplier, in clips of one record. clip_l2: C. records: R.
    Raises:
        CompositionError: E-ORDER after any other stage, whose output would not be a sum of rounded records;
            E-STATS with metrics, E-WEIGHT with weights; E-ADJ-MIX where devices do not send zeros as zeros; E-NMIN
            where a round may end without an honest survivor; and as ``size_record_noise``.
    """
    name = f"record_noise({z:g})"

    def sizing(space: Space) -> RecordNoiseSizing:
        return size_record_noise(space.quorum.n_max, space.quorum.honest, z, clip_l2, records, spec.dim)

    def infer(space: Space) -> Space:
        require.real(space, name)
        require.neighbours_at_zero(space, name)
        if "weight" in space.head:
            what = f"{name}: the weight of an update counts its device's records, without noise."
            raise CompositionError("E-WEIGHT", what, "leave out weigh.")
        if space.head:
            what = f"{name}: train losses would leave the device without noise."
            raise CompositionError("E-STATS", what, 'write metrics = "none".')
        changed = space.dim != spec.dim or space.sparse or space.rank or space.rotated or space.residual
        if changed or space.l2 != inf or space.linf != inf:
            what = (
                f"{name}: every record is clipped and rounded before a device adds it up, so no stage can come first."
            )
            raise CompositionError("E-ORDER", what, "leave out [[stage]], and parts that take turns.")
        q = space.quorum
        if not q.honest:
            what = f"{name}: of {q.n_min} contributions up to {q.corrupt} may come without noise."
            fix = "raise round.minimum or the cohort, or assume fewer corrupt devices (trust.malicious_fraction)."
            raise CompositionError("E-NMIN", what, fix)
        found = sizing(space)
        unit = found.step / records
        return space.but(
            grid=Grid(Kind.INTEGER, float(found.bits), unit, (1 << found.bits - 1) - 1),
            noise=Noise(found.s * unit, q.honest, found.rho, found.xi, found.bits),
            l2=found.d2 * found.step,
            linf=inf,
            unbiased=False,
            clipped=True,
        )

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        found = sizing(space)
        q = np.rint(payload.body.astype(np.float64) * (records / found.step))
        norm, longest = float(np.linalg.norm(q)), records * found.d2
        if norm > longest:
            q = np.trunc(q * (longest / norm))
        noised = q.astype(np.int64) + discrete_gaussian(found.s, q.size, turn.own("noise", turn.round))
        half = 1 << (found.bits - 1)
        return payload.but(body=((noised + half & (2 * half - 1)) - half).astype(np.int32)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload.but(body=(payload.body * (sizing(space).step / records)).astype(np.float32))

    def says(before: Space, after: Space) -> str:
        return (
            f"sums of at most {records:,} clipped records on one public grid of {after.grid.bits:g}-bit integers; adds "
            f"noise of standard deviation {after.noise.std:.4g} to every coordinate of a device's mean, "
            f"{after.noise.honest} shares of which are sure in each sum"
        )

    return Stage(name, infer, encode, decode, says, pointwise=True)
