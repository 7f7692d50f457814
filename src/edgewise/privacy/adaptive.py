"""Adaptive clipping: the bound follows a quantile of the updates' norms, learnt from one noisy bit per device.

    device:  b_i = 1/2 if ||x_i|| <= C else -1/2                      one more coordinate of the sum
    server:  b = (sum b_i + N(0, sigma_b^2)) / m + 1/2                 share of updates within the bound
             C <- C exp(-eta (b - gamma))
    noise of the update: z_delta C, with z_delta = (z^-2 - (2 sigma_b)^-2)^(-1/2)

Both sums together are one Gaussian release of multiplier z, so the event stays ``spend.gaussian(z)`` (or its sampled
form): the bit moves its sum by at most 1/2. m is the *expected* cohort, a public number; dividing by how many came
would give that away (E-DIV-N). Devices that do not come count as bits of 0, that is as half within the bound.
Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871, algorithm 1 and theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, hypot, isfinite

from edgewise.core import demand
from edgewise.core.errors import RecipeError
from edgewise.privacy.clip import LARGEST, SMALLEST

QUANTILE, RATE, BIT_SHARE = 0.5, 0.2, 1 / 20  # gamma, eta, sigma_b / m


@dataclass(frozen=True, slots=True)
class Split:
    """One multiplier z, divided. ``z_update``: noise of the update over C. ``sigma_bits``: of the sum of bits."""

    z_update: float
    sigma_bits: float


def split(z: float, expected: float, sigma_bits: float = 0.0) -> Split:
    """What is left of z for the update when the bits get noise of ``sigma_bits`` (0: a twentieth of the cohort).

    ``z_update = (z^-2 - (2 sigma_bits)^-2)^(-1/2)``, a little more noise than z.
    Args:
        z: multiplier of both together, above 0. expected: m, devices expected in a round.
    Raises: RecipeError(E-VALUE) where z >= 2 sigma_bits: so small a cohort cannot afford the bit.
    """
    demand.positive("adaptive clip: z", z)
    demand.positive("adaptive clip: expected cohort", expected)
    demand.between("adaptive clip: sigma_bits", sigma_bits, 0.0, 1e12)
    sigma = sigma_bits or BIT_SHARE * expected
    if z >= 2.0 * sigma:
        raise RecipeError(
            "E-VALUE",
            f"adaptive clipping: noise of {sigma:.4g} on the sum of {expected:g} bits leaves nothing of a noise "
            f"multiplier of {z:.4g} for the update; it must be below {2.0 * sigma:.4g}.",
            f"expect more than {z / (2.0 * BIT_SHARE):.0f} devices a round, or use a fixed clip.",
        )
    return Split((z**-2 - (2.0 * sigma) ** -2) ** -0.5, sigma)


def bit(norm: float, clip_l2: float) -> float:
    """What a device adds to the sum of bits: 1/2 where its update is within the bound, else -1/2 (NaN is not)."""
    return 0.5 if norm <= clip_l2 else -0.5


def updated(
    clip_l2: float, noisy_bits: float, expected: float, quantile: float = QUANTILE, rate: float = RATE
) -> float:
    """The bound of the next round from the noised sum of bits of this one.

    ``C exp(-rate (noisy_bits / expected + 1/2 - quantile))``: post-processing of what is released already.
    Args:
        clip_l2: C, model units. noisy_bits: sum of ``bit`` with noise. expected: m of ``split``.
        quantile: share of updates that are to stay whole. rate: step of the logarithm.
    Edge cases: the bound stays in 1e-30 to 1e30, where ``clip`` works. Raises RecipeError(E-VALUE) as arguments demand.
    """
    demand.positive("adaptive clip: expected cohort", expected)
    demand.between("adaptive clip: quantile", quantile, 0.0, 1.0)
    demand.positive("adaptive clip: rate", rate, 10.0)
    if not isfinite(noisy_bits):
        raise RecipeError("E-VALUE", f"adaptive clip: the sum of bits is {noisy_bits!r}.", "check the noise.")
    step = -rate * (noisy_bits / expected + 0.5 - quantile)
    return min(LARGEST, max(SMALLEST, clip_l2 * exp(min(600.0, max(-600.0, step)))))


def joint(update: Split) -> float:
    """z of both sums together, the inverse of ``split``: ``(z_update^-2 + (2 sigma_bits)^-2)^(-1/2)``."""
    return 1.0 / hypot(1.0 / update.z_update, 0.5 / update.sigma_bits)
