"""Record-level differential privacy on the device: DP-SGD, with noise from a cryptographic generator.

    g = step (sum_(i in B) round(g_i min(1, C / ||g_i||) / step) + N_Z(0, S^2)) / (q n),   S step = z C

B takes every block of text independently with probability q (Poisson), g_i is the gradient of block i alone, over all
trained parameters. One block is one record. The gradient then goes to the optimizer as any other.
g_i is a function of block i, its row number, the weights and the step's key: whoever else is in B. So dropout is drawn
anew for each record, and what a forward pass leaves in the model's buffers or trained weights is taken back.
Clipped gradients are rounded to one grid, one by one, and the noise is the exact discrete Gaussian on it
(``privacy.grid``): the sum is one of integers, and whatever the optimizer makes of it in float32 is a function of them.
Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1; Mironov 2012, why not in floating point.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.errors import TrainingError
from edgewise.core.keys import Key, derive
from edgewise.core.training import StepNoise
from edgewise.crypto import prg
from edgewise.learn.flat import Flat
from edgewise.learn.seeded import seeded
from edgewise.privacy import grid

LOG = logging.getLogger("edgewise")
_CHUNK = 1 << 18  # coordinates rounded at a time: bounds the temporary memory
MIXING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
Record = tuple[int, Any]  # its row number on the device, and a batch of it alone
Loss = Callable[[nn.Module, Any], tuple[Tensor, float]]


def check(model: nn.Module) -> None:
    """Raises TrainingError(E-BN) for a model in which one record's gradient depends on others, or in which a record
    changes weights by being read."""
    for name, module in model.named_modules():
        if isinstance(module, MIXING):
            raise TrainingError(
                "E-BN",
                f"{name} normalises over the batch: one record's gradient depends on others, and no clip bounds it.",
                "use layer or group normalisation.",
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise TrainingError(
                "E-BN",
                f"{name} shortens the rows that a record reads, in the forward pass and without noise (max_norm).",
                "leave out max_norm.",
            )


def examine(model: nn.Module, loss: Loss, records: Sequence[Record], flat: Flat, key: Key) -> bool:
    """Train on some records and see whether one leaves anything behind for the next; False where none could be trained.

    The first record's gradient has to have the same bits again after the others, and no parameter or buffer may change.
    Raises: TrainingError(E-BN) where something is carried from one record to the next.
    Guarantees: buffers, and the gradient's place, are as they were.
    """
    model.train()
    with unchanged(model):
        before = _digests(model)
        found = [_one(model, loss, r, flat, key) and _digest(flat.g_D) for r in (*records, records[0])]
        after = _digests(model)
        flat.zero_grad()
    carrying = next((name for name in {**before, **after} if before.get(name) != after.get(name)), "")
    if not carrying and found[0] != found[-1]:
        carrying = "a layer or the loss"
    if carrying:
        raise TrainingError(
            "E-BN",
            f"{carrying} changes while a record is trained: later records' gradients depend on it, and no clip bounds "
            "that.",
            "use a model and a loss that remember nothing of a forward pass.",
        )
    return found[0] is not None


def _digests(model: nn.Module) -> dict[str, bytes]:
    """A digest of every parameter and buffer: no copy of a large model."""
    return {name: _digest(x) for name, x in (*model.named_parameters(), *model.named_buffers())}


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.detach().contiguous().view(-1).view(torch.uint8).numpy().data).digest()


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Buffers are afterwards what they were, and when what is given is called: the same tensors, the same values."""
    places = [m._buffers for m in model.modules()]
    buffers = [dict(place) for place in places]
    values = [{name: x.clone() for name, x in place.items() if x is not None} for place in places]

    @torch.no_grad()
    def restore() -> None:
        for place, tensors, content in zip(places, buffers, values, strict=True):
            place.clear()
            place.update(tensors)
            for name, value in content.items():
                tensors[name].copy_(value)  # type: ignore[union-attr]

    try:
        yield restore
    finally:
        restore()


def drawn(n: int, rate: float, key: Key) -> NDArray[np.int64]:
    """The records of one step, int64[m]; may be empty. A function of the key, which only the device knows, by a
    cryptographic generator: privacy is amplified only where nobody can guess the draw."""
    return np.flatnonzero(prg.coins(key, n, rate)).astype(np.int64)


def taken(records: Callable[[NDArray[np.int64]], Sequence[Any]], rows: NDArray[np.int64]) -> Iterator[Record]:
    """These records, each read by itself: what is lost to one that cannot be read is that record."""
    for i in range(rows.size):
        try:
            [batch] = records(rows[i : i + 1])
        except Exception as e:  # boundary: reading foreign data may raise anything
            LOG.warning("a record cannot be read, and counts as zero: %s", type(e).__name__)
            continue
        yield int(rows[i]), batch


def gradient(
    model: nn.Module,
    loss: Loss,
    records: Iterable[Record],
    flat: Flat,
    dp: StepNoise,
    expected: float,
    key: Key,
) -> tuple[float, float]:
    """The noised gradient of one step into ``flat.g_D``; returns (summed loss, terms) of its records.

    Args:
        records: each once. expected: q n, the fixed divisor (how many were drawn is private).
        key: 32 secret bytes of this step: of the noise, and with a record's row number of its dropout.
    Guarantees: one record moves the sum before the noise by at most C, and by half a step per coordinate where it is
        rounded, for which ``grid.fit`` has paid, whatever it holds. A record that training cannot take (its loss raises
        or is not finite, as its gradient) counts as zero: nothing that leaves says that there was one.
    Raises: CompositionError(E-PRECISION) as ``grid.fit``.
    """
    g_D, total_D = flat.g_D.numpy(), np.zeros(flat.g_D.numel(), np.int64)
    on = grid.fit("record noise", dp.z, dp.clip, total_D.size)
    summed, terms, weights_D = 0.0, 0.0, flat.w_D.clone()
    with unchanged(model) as restore:
        for record in records:
            measured = _one(model, loss, record, flat, key)
            restore()
            flat.w_D.copy_(weights_D)  # only a step moves weights, with noise
            if measured is None:
                continue
            factor = min(1.0, dp.clip * (1.0 - 2.0**-20) / max(measured.norm, 1e-30))
            for at in range(0, total_D.size, _CHUNK):
                part = np.multiply(g_D[at : at + _CHUNK], factor, dtype=np.float64)
                total_D[at : at + _CHUNK] += grid.rounded(part, on.step)
            summed, terms = summed + measured.loss * measured.terms, terms + measured.terms
    total_D += grid.noise(on, total_D.size, derive(key, "record noise"))
    flat.zero_grad()
    np.multiply(total_D, on.step / expected, out=g_D, casting="same_kind")
    return summed, terms


class _Measured(NamedTuple):
    """Of one record: the gradient's L2 norm, its mean loss, and the number of terms of that mean."""

    norm: float
    loss: float
    terms: float


def _one(model: nn.Module, loss: Loss, record: Record, flat: Flat, key: Key) -> _Measured | None:
    """One record's own gradient into ``flat.g_D``; None where training cannot take it."""
    row, batch = record
    flat.zero_grad()
    if not model.training:  # the record before may have failed half-way
        model.train()
    with seeded(derive(key, "record", row)):
        try:
            mean, n = loss(model, batch)
            mean.backward()
            norm = torch.linalg.vector_norm(flat.g_D, dtype=torch.float64)
            measured = _Measured(float(norm), mean.item(), float(n))
        except Exception as e:  # boundary: a loss is foreign code, and what it raises may depend on the record
            LOG.warning("training fails on a record, which counts as zero: %s", type(e).__name__)
            return None
    return measured if np.isfinite(measured.norm) and np.isfinite(measured.loss) else None
