"""Record-level differential privacy on the device: DP-SGD, with noise from a cryptographic generator.

    g = (sum_(i in B) g_i min(1, C / ||g_i||) + N(0, (z C)^2 I)) / (q n)

B takes every block of text independently with probability q (Poisson), g_i is the gradient of block i alone, over all
trained parameters. One block is one record. The gradient then goes to the optimizer as any other.
Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.keys import Key, derive, generator
from edgewise.learn.flat import Flat
from edgewise.privacy.noise import normals

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
    """The records of one step, int64[m]; may be empty. A function of the key, which only the device knows."""
    return np.flatnonzero(generator(key).random(n) < rate).astype(np.int64)


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
    Guarantees: one record moves the sum before the noise by at most C, whatever it holds; a record whose gradient is
        not finite counts as zero.
    """
    total = torch.zeros_like(flat.g_D)
    summed = terms = 0.0
    for record in records:
        flat.zero_grad()
        mean, n = loss(model, record)
        mean.backward()
        norm = float(torch.linalg.vector_norm(flat.g_D, dtype=torch.float64))
        if np.isfinite(norm):
            total.add_(flat.g_D, alpha=min(1.0, dp.clip * (1.0 - 2.0**-20) / max(norm, 1e-30)))
            summed, terms = summed + mean.item() * n, terms + n
    noise = torch.from_numpy((dp.z * dp.clip * normals(derive(key, "record noise"), total.numel())).astype(np.float32))
    flat.zero_grad()
    flat.g_D.copy_((total + noise) / expected)
    return summed, terms
