"""Record-level differential privacy on the device: DP-SGD, with noise from a cryptographic generator.

    g = step (sum_(i in B) round(g_i min(1, C / ||g_i||) / step) + N_Z(0, S^2)) / (q n),   S step = z C

B takes every block of text independently with probability q (Poisson), g_i is the gradient of block i alone, over all
trained parameters. One block is one record. The gradient then goes to the optimizer as any other.
Clipped gradients are rounded to one grid, one by one, and the noise is the exact discrete Gaussian on it
(``privacy.grid``): the sum is one of integers, and whatever the optimizer makes of it in float32 is a function of them.
Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; Mironov 2012, why not in floating point.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.keys import Key, derive
from edgewise.crypto import prg
from edgewise.learn.flat import Flat
from edgewise.privacy import grid

LOG = logging.getLogger("edgewise")
_CHUNK = 1 << 18  # coordinates rounded at a time: bounds the temporary memory
MIXING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)


class RecordDp(NamedTuple):
    """``clip``: C, of one record's gradient. ``z``: noise multiplier. ``rate``: q, of each step."""

    clip: float
    z: float
    rate: float


def check(model: nn.Module) -> None:
    """Raises TrainingError(E-BN) for a model in which one record's gradient depends on others."""
    for name, module in model.named_modules():
        if isinstance(module, MIXING):
            raise TrainingError(
                "E-BN",
                f"{name} normalises over the batch: one record's gradient depends on others, and no clip bounds it.",
                "use layer or group normalisation.",
            )


def drawn(n: int, rate: float, key: Key) -> NDArray[np.int64]:
    """The records of one step, int64[m]; may be empty. A function of the key, which only the device knows, by a
    cryptographic generator: privacy is amplified only where nobody can guess the draw."""
    return np.flatnonzero(prg.coins(key, n, rate)).astype(np.int64)


def taken(records: Callable[[NDArray[np.int64]], Sequence[Any]], rows: NDArray[np.int64]) -> Iterator[Any]:
    """These records, each read by itself: what is lost to one that cannot be read is that record."""
    for i in range(rows.size):
        try:
            yield from records(rows[i : i + 1])
        except Exception as e:  # boundary: reading foreign data may raise anything
            LOG.warning("a record cannot be read, and counts as zero: %s", type(e).__name__)


def gradient(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], tuple[Tensor, float]],
    records: Sequence[Any],
    flat: Flat,
    dp: RecordDp,
    expected: float,
    key: Key,
) -> tuple[float, float]:
    """The noised gradient of one step into ``flat.g_D``; returns (summed loss, terms) of its records.

    Args:
        records: batches of one record each. expected: q n, the fixed divisor (how many were drawn is private).
        key: 32 secret bytes of this step.
    Guarantees: one record moves the sum before the noise by at most C, and by half a step per coordinate where it is
        rounded, for which ``grid.fit`` has paid, whatever it holds. A record that training cannot take (its loss raises
        or is not finite, as its gradient) counts as zero: nothing that leaves says that there was one.
    Raises: CompositionError(E-PRECISION) as ``grid.fit``.
    """
    g_D, total_D = flat.g_D.numpy(), np.zeros(flat.g_D.numel(), np.int64)
    on = grid.fit("record noise", dp.z, dp.clip, total_D.size)
    summed = terms = 0.0
    for record in records:
        flat.zero_grad()
        try:
            mean, n = loss(model, record)
            mean.backward()
        except Exception as e:  # boundary: a loss is foreign code, and what it raises may depend on the record
            LOG.warning("training fails on a record, which counts as zero: %s", type(e).__name__)
            continue
        norm, value = float(torch.linalg.vector_norm(flat.g_D, dtype=torch.float64)), mean.item()
        if np.isfinite(norm) and np.isfinite(value):
            factor = min(1.0, dp.clip * (1.0 - 2.0**-20) / max(norm, 1e-30))
            for at in range(0, total_D.size, _CHUNK):
                part = np.multiply(g_D[at : at + _CHUNK], factor, dtype=np.float64)
                total_D[at : at + _CHUNK] += grid.rounded(part, on.step)
            summed, terms = summed + value * n, terms + n
    total_D += grid.noise(on, total_D.size, derive(key, "record noise"))
    flat.zero_grad()
    np.multiply(total_D, on.step / expected, out=g_D, casting="same_kind")
    return summed, terms
