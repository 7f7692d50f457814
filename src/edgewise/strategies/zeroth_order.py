"""Zeroth-order training: devices compare losses along seeded random directions, and send only the coefficients.

The model is w(a) = w_0 + sum_k a_k z_k, with directions z_k in {-1, +1}^D that everybody makes from K public seeds.
``a`` (float32[K], zero at first) is the vector of the whole run. The server averages it, and every stage weighs, clips,
quantizes or sums it. That is sound because w is linear in a.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le

from edgewise.core.part import Doc, part
from edgewise.strategies.base import Directions, Strategy
from edgewise.strategies.fedopt import factor_words, fedavg

FEWEST, MOST = 16, 65536


@part
def zeroth_order(
    seeds: Annotated[int, Ge(FEWEST), Le(MOST), Doc("directions; 4 bytes of each travel")] = 4096,
    eps: Annotated[float, Gt(0), Doc("distance of the two compared models from the current one, per parameter")] = 5e-4,
    lr: Annotated[float, Gt(0), Doc("server learning rate; 1 = the average itself")] = 1.0,
) -> Strategy:
    """Take losses along seeded directions instead of gradients. Only the directions' coefficients travel.

    Coefficients are averaged plainly: a += lr mean_i(x_i). A device's step with direction k: rho = (L(w + eps z_k) -
    L(w - eps z_k)) / (2 eps); w -= eta rho z_k; x_k -= eta rho. eta is part of x, so a schedule of rates over rounds
    needs no list of past rates. (FedKSeed sums bare rho and is therefore tied to one constant rate.)

    Args:
        seeds: K. 4 K bytes go each way, and rebuilding w from a takes time K D.
        eps: distance of the compared models, per parameter. The entries of the directions are +-1.
        lr: server learning rate.
    Raises:
        RecipeError: E-VALUE.
    Edge cases:
        The model never leaves the K-dimensional affine space w_0 + span(z_1, ..., z_K), however long the run.
    Source: Qin et al. 2024, arXiv:2312.06353 (FedKSeed). Malladi et al. 2023, arXiv:2305.17333 (MeZO, the step). Spall
    1992 (SPSA, directions of signs). Both papers take Gaussian directions, and E z z^T = I either way.
    """
    name = f"zeroth_order({seeds}, {eps:g}, {lr:g})"
    mean = f"the mean of the devices' coefficients of {seeds} seeded directions"
    says = f"adds {factor_words(lr)}{mean}; no gradient is computed"
    return fedavg(lr)._replace(name=name, says=says, directions=Directions(seeds, eps))
