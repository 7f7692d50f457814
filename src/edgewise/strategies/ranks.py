"""Devices of unequal rank: each trains the first columns of a shared adapter, and a column is the mean over those.

    strategy = of_ranks(strategy, spec, (4, 16))
    strategy.apply(state, aggregate)         # column 9 of B: mean over the devices of rank 16

With A fixed and shared, device i of rank r_i trains B[:, :r_i]. For column c, with weights w_i,

    mean_c = sum_i w_i B_i[:, c] / sum_{r_i > c} w_i

Columns between two ranks have one denominator, so one scalar a rank travels (``strategies.levels``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewise.core.factors import columns
from edgewise.core.vector import Spec
from edgewise.strategies.base import Strategy
from edgewise.strategies.levels import step_by_levels


def rank_scalar(rank: int) -> str:
    """Name the scalar of the devices of ``rank`` or more."""
    return f"rank_{rank}"


def of_ranks(
    inner: Strategy, spec: Spec, ranks: tuple[int, ...], shares: Mapping[int, float] | None = None
) -> Strategy:
    """Let ``inner`` step along the mean of each column over the devices that trained it.

    Args:
        inner: as of ``of_levels``.
        spec: layout of the trained parameters.
        ranks: all ranks of devices, increasing. Every device has the first one or more.
        shares: rank -> public share of the weight at devices of that rank or more, as of ``of_levels``.
    Guarantees:
        ``inner`` itself where all devices have one rank. Others as ``of_levels``.
    Edge cases:
        A coordinate outside the factors is a mean over all. Others as ``of_levels``.
    """
    if len(ranks) == 1:
        return inner
    # 0: all devices trained it. k: those of rank ranks[k] or more.
    level = np.searchsorted(ranks, columns(spec), "right").astype(np.uint16)
    return step_by_levels(
        inner,
        level,
        tuple(rank_scalar(rank) for rank in ranks[1:]),
        lambda work: [work.rank >= rank for rank in ranks[1:]],
        None if shares is None else [shares[rank] for rank in ranks[1:]],
        f"ranks {', '.join(map(str, ranks))}",
        "a column of the adapters is the mean over the devices whose rank reaches it",
    )
