"""Devices of unequal depth: each trains the last blocks of the model, and a block is the mean over those.

    strategy = of_depths(strategy, spec, (2, 6))
    strategy.apply(state, aggregate)         # the fifth block from the last: mean over the devices that train 6

Device i trains the last k_i blocks. For block j from the last, with weights w_i,

    mean_j = sum_i w_i x_i / sum_{k_i >= j} w_i

Blocks between two depths have one denominator, so one scalar a depth travels (``strategies.levels``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgewise.core.blocks import from_last
from edgewise.core.errors import ModelError
from edgewise.core.vector import Spec
from edgewise.strategies.base import Strategy
from edgewise.strategies.levels import step_by_levels


def depth_scalar(blocks: int) -> str:
    """Name the scalar of the devices that train so many blocks or more."""
    return f"blocks_{blocks}"


def of_depths(
    inner: Strategy, spec: Spec, depths: tuple[int, ...], shares: Mapping[int, float] | None = None
) -> Strategy:
    """Let ``inner`` step along the mean of each block over the devices that trained it.

    Args:
        inner: as of ``of_levels``.
        spec: layout of the trained parameters, those of the last ``depths[-1]`` blocks.
        depths: all numbers of last blocks that devices train, increasing. Every device trains the first or more.
        shares: blocks -> public share of the weight at devices of that depth or more, as of ``of_levels``.
    Raises:
        ModelError: E-TARGETS where the layout has no numbered blocks, or some before the last ``depths[-1]``.
    Guarantees: as ``of_levels``.
    """
    numbers = from_last([s.name for s in spec.segments])
    if not numbers or max(numbers) > depths[-1]:
        what = f"trainable.block_shares are of the last {depths[-1]} blocks, and the trained parameters have "
        what += f"{max(numbers)}." if numbers else "no numbered block."
        raise ModelError("E-TARGETS", what, "use the text trainer with a decoder, and last_blocks.")
    level = np.zeros(spec.dim, np.uint16)
    for s, number in zip(spec.segments, numbers, strict=True):
        level[s.start : s.stop] = np.searchsorted(depths, number, "left")
    return step_by_levels(
        inner,
        level,
        tuple(depth_scalar(k) for k in depths[1:]),
        lambda work: [work.blocks >= k for k in depths[1:]],
        None if shares is None else [shares[k] for k in depths[1:]],
        f"last {', '.join(map(str, depths))} blocks",
        "a block is the mean over the devices that train it",
    )


def trained(spec: Spec, blocks: int) -> tuple[str, ...]:
    """Name the segments of the last blocks, and of what follows them."""
    names = [s.name for s in spec.segments]
    return tuple(name for name, number in zip(names, from_last(names), strict=True) if number <= blocks)
