"""Gaussian noise on the total, scaled to the sensitivity to one device, from a cryptographic generator."""

from __future__ import annotations

from dataclasses import replace
from math import hypot, inf, sqrt
from typing import Annotated

import numpy as np
from annotated_types import Gt
from numpy.typing import NDArray

from edgewise.core import require
from edgewise.core.errors import CompositionError
from edgewise.core.keys import Key, Turn, derive
from edgewise.core.memory import Memory
from edgewise.core.part import Doc, part
from edgewise.core.payload import Payload
from edgewise.core.space import Space, Total
from edgewise.core.stage import BELOW, WEIGHT, Post, Stage
from edgewise.crypto.prg import KeyStreamWords
from edgewise.privacy import grid

_CHUNK = 1 << 18  # pairs drawn at a time, which bounds the temporary memory


def secret_normals(entropy: Key, n: int) -> NDArray[np.float64]:
    """Draw n standard normal float64 from 32 secret bytes: AES-256-CTR keystream, 53-bit uniforms, Box-Muller.

    A stream must be used once. Derive a fresh key for every draw.
    """
    stream = KeyStreamWords(entropy)
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


@part
def local_noise(z: Annotated[float, Gt(0)]) -> Stage:
    """Add N(0, (z C)^2) to every coordinate on the device, where C is the L2 bound before.

    Algebra: noise_std -> z C. Nothing bounds the body any more.
    Guarantees: the exact discrete Gaussian on a grid that the update is rounded to first (``grid``), from AES-256-CTR
        keyed by the device. The update is private by this noise alone, before it leaves the device.
    Args:
        z: noise multiplier, above 0.
    Raises: RecipeError(E-VALUE); CompositionError: E-NOT-REAL, E-NOISE-NOCLIP, E-STATS with metrics or weights beside,
        E-PRECISION as ``grid.fit_noise_grid``.
    Source: Dwork and Roth 2014, appendix A; ``grid``.
    """
    name = f"local_noise({z:g})"

    def infer(space: Space) -> Space:
        require.real(space, name)
        if space.l2 == inf:
            raise CompositionError("E-NOISE-NOCLIP", f"{name}: nothing bounds the update.", "put clip before it.")
        if space.head:
            raise CompositionError(
                "E-STATS", f"{name}: weights or losses would leave without noise.", 'metrics = "none", no weigh.'
            )
        return space.but(l2=inf, linf=inf, noise=replace(space.noise, std=hypot(space.noise.std, fitted(space).std)))

    def fitted(space: Space) -> grid.NoiseGrid:
        return grid.fit_noise_grid(name, z, space.l2, space.dim, space.l2)

    def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
        body = grid.noised_on_grid(payload.body, fitted(space), turn.own("local noise", turn.round))
        return payload.but(body=body.astype(np.float32)), memory

    def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
        return payload

    def says(before: Space, after: Space) -> str:
        return f"adds noise of standard deviation {after.noise.std:.4g} to every coordinate"

    return Stage(name, infer, encode, decode, says, pointwise=True)


def noise_words(before: Total, after: Total) -> str:
    """Describe the noise on a total in words, for ``Post.says``."""
    clips = " clips" if BELOW in after.space.head else ""
    return f"adds Gaussian noise of std {after.noise_std:.4g}{clips} per coordinate"


def noised_neighbour_distance(total: Total) -> float:
    """Compute the L2 distance of neighbouring totals when noise is added: the sensitivity, and the rounding."""
    return total.sensitivity + total.rounding + total.space.sides * total.step / 2.0 * sqrt(total.dim)


def check_noise_bounds(total: Total, name: str) -> None:
    """Check that a total fulfils the conditions of noise on it.

    Raises CompositionError: E-NOISE-NOCLIP and E-NORM-AFTER when nothing bounds a device's contribution, E-WEIGHT when
        the divisor would be a noisy sum of weights, E-PRECISION when the sum is rounded too coarsely, E-VALUE when the
        sum has no room for every update that the clip allows. A device would then be refused because of its text.
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
    if (peak := min(total.space.peak, total.space.l2)) > total.most:
        raise CompositionError(
            "E-VALUE",
            f"{name}: a coordinate of an update may be as large as {peak:.4g}, and a sum of up to "
            f"{total.space.quorum.n_max} has room for {total.most:.4g} of each.",
            "lower dp.clip_l2, or use a smaller cohort.",
        )
    if (more := noised_neighbour_distance(total) - total.sensitivity) > grid.COST * total.sensitivity:
        raise CompositionError(
            "E-PRECISION",
            f"{name}: the sum is rounded, which can move it by {more:.3g}, and a device by {total.sensitivity:.3g}: "
            "noise at that precision does not hide what it should.",
            "raise the clip, use a smaller cohort, or leave out rotate behind a hidden sum.",
        )


def noise_grid_on_total(name: str, z: float, total: Total) -> grid.NoiseGrid:
    """Fit the grid for noise of z times ``noised_neighbour_distance`` on a total. Raises
    CompositionError(E-PRECISION)."""
    return grid.fit_noise_grid(
        name, z, noised_neighbour_distance(total), total.dim, total.space.quorum.n_max * total.sensitivity
    )


@part
def noise(z: Annotated[float, Gt(0), Doc("noise multiplier: standard deviation over sensitivity")]) -> Post:
    """Add Gaussian noise of ``z`` times the sensitivity to the total: N(0, (z sensitivity)^2), body and head alike.

    Algebra: noise_std -> sqrt(noise_std^2 + (z sensitivity)^2), where rounding counts as sensitivity
    (``noised_neighbour_distance``). Guarantees: the exact discrete Gaussian on a grid that the float64 total is rounded
        to first (``grid``). It is independent of the data. The generator is AES-256-CTR keyed by ``entropy``, which
        must be secret and fresh for each release.
    Args:
        z: noise multiplier, above 0.
    Raises:
        RecipeError(E-VALUE); CompositionError as ``check_noise_bounds`` and ``grid.fit_noise_grid``.
    Source: Dwork and Roth 2014, appendix A; McMahan et al. 2018, arXiv:1710.06963.
    """
    name = f"noise({z:g})"

    def infer(total: Total) -> Total:
        check_noise_bounds(total, name)
        return total.but(noise_std=hypot(total.noise_std, noise_grid_on_total(name, z, total).std))

    def apply(
        x: NDArray[np.float64], total: Total, round: int, entropy: Key, memory: Memory
    ) -> tuple[NDArray[np.float64], Memory]:
        return grid.noised_on_grid(x, noise_grid_on_total(name, z, total), derive(entropy, "noise")), memory

    return Post(name, noise_words, infer, apply)
