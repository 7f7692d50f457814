"""Gaussian noise on the total, sized by how much one device can move it, from a cryptographic generator."""

from __future__ import annotations

from math import hypot, inf

import numpy as np
from numpy.typing import NDArray

from edgewise.core import demand
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Key, Turn, derive
from edgewise.core.space import Space, Total
from edgewise.core.stage import WEIGHT, Memory, Payload, Post, Stage
from edgewise.core.vector import Vector
from edgewise.crypto.prg import Words

_CHUNK = 1 << 18  # pairs drawn at a time: bounds the temporary memory


def normals(entropy: Key, n: int) -> NDArray[np.float64]:
    """n standard normal float64 from 32 secret bytes: AES-256-CTR keystream, 53-bit uniforms, Box-Muller.

    A stream must be used once: derive a fresh key for every draw.
    """
    stream = Words(entropy)
    out = np.empty(n + n % 2, np.float64)
    for start in range(0, out.size // 2, _CHUNK):
        pairs = min(_CHUNK, out.size // 2 - start)
        words = np.empty((2, pairs), np.uint64)
        stream.fill(words.reshape(-1))
        words >>= np.uint64(11)
        radius = np.sqrt(-2.0 * np.log((words[0] + np.float64(1.0)) * 2.0**-53))  # u in (0, 1]: never log 0
        angle = words[1] * (2.0 * np.pi * 2.0**-53)
        out[2 * start : 2 * (start + pairs)] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return out[:n]


def local_noise(z: float) -> Stage:
    """Add N(0, (z C)^2) to every coordinate on the device, C the L2 bound before.

    Algebra: noise_std -> z C; nothing bounds the body any more. Guarantees: the generator is AES-256-CTR keyed by the
    device; what leaves it hides it by itself. The continuous Gaussian's floating-point leaks apply (see ``noise``).
    Args:
        z: noise multiplier, above 0.
    Raises: RecipeError(E-VALUE); CompositionError: E-NOT-REAL, E-NOISE-NOCLIP, E-STATS with metrics or weights beside.
    Source: Dwork and Roth 2014, appendix A.
    """
    name = f"local_noise({z:g})"
    demand.positive("local_noise: z", z)

    def infer(space: Space) -> Space:
        demand.real(space, name)
        if space.l2 == inf:
            raise CompositionError("E-NOISE-NOCLIP", f"{name}: nothing bounds the update.", "put clip before it.")
        if space.head:
            raise CompositionError(
                "E-STATS", f"{name}: weights or losses would leave without noise.", 'metrics = "none", no weigh.'
            )
        return space.but(l2=inf, linf=inf, noise_std=hypot(space.noise_std, z * space.l2))

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        fresh = normals(derive(turn.private, "local noise", turn.round), payload.body.size)
        return payload.but(body=(payload.body + z * space.l2 * fresh).astype(np.float32)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    return Stage(name, infer, encode, decode, pointwise=True)


def bounded(total: Total, name: str) -> None:
    """What noise on a total needs.

    Raises CompositionError: E-NOISE-NOCLIP and E-NORM-AFTER when nothing bounds what one device adds, E-WEIGHT when the
        divisor would be a noisy sum of weights.
    """
    if total.sensitivity == inf:
        if total.space.clipped:
            raise CompositionError(
                "E-NORM-AFTER",
                f"{name}: a stage after clip can lengthen the update again, so no noise hides it.",
                "put clip after that stage, right before rotate or quantize (inside feedback, behind a sketch).",
            )
        raise CompositionError(
            "E-NOISE-NOCLIP",
            f"{name}: nothing bounds how far one device can move the total, so no noise hides it.",
            "put clip after every stage that can lengthen the update (inside feedback), before quantize.",
        )
    if WEIGHT in total.space.head:
        raise CompositionError(
            "E-WEIGHT",
            f"{name}: the mean would be divided by a noisy sum of weights, which may be near zero or negative.",
            "leave out weigh: then all devices count the same and the divisor is their number.",
        )


def noise(z: float) -> Post:
    """Add N(0, (z * sensitivity)^2) to every coordinate of the total, body and head alike.

    Algebra: noise_std -> sqrt(noise_std^2 + (z sensitivity)^2).
    Guarantees: independent of the data; the generator is AES-256-CTR keyed by ``entropy``, which must be secret and
    fresh for each release. The noise is a continuous Gaussian in float64, rounded to float32 with the total: the
    known floating-point leaks (Mironov 2012) apply, the exact discrete Gaussian comes with distributed noise.
    Args:
        z: noise multiplier, above 0.
    Raises:
        RecipeError(E-VALUE); CompositionError as ``bounded``.
    Source: Dwork and Roth 2014, appendix A; McMahan et al. 2018, arXiv:1710.06963.
    """
    name = f"noise({z:g})"
    demand.positive("noise: z", z)

    def infer(total: Total) -> Total:
        bounded(total, name)
        return total.but(noise_std=hypot(total.noise_std, z * total.sensitivity))

    def apply(x: Vector, total: Total, round: int, entropy: Key, memory: Memory) -> tuple[Vector, Memory]:
        std = z * total.sensitivity
        return (x + std * normals(derive(entropy, "noise"), x.size)).astype(np.float32), memory

    return Post(name, infer, apply)
