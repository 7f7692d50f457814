"""Record-level differential privacy on the device: DP-SGD, with noise from a cryptographic generator.

    g = step (sum_(i in B) round(g_i min(1, C / ||g_i||) / step) + N_Z(0, S^2)) / (q n),   S step = z C

B takes every block of text independently with probability q (Poisson). One block is one record, and g_i is the
gradient of block i alone, over all trained parameters. The optimizer takes g like any other gradient.

g_i depends on block i, its row number, the weights and the step's key, and on no other record in B. Dropout is
therefore drawn anew for each record, and a record's changes to the model's buffers or trained weights are undone.

Each clipped gradient is rounded to one grid, and the noise is the exact discrete Gaussian on it (``privacy.grid``). The
sum is one of integers, so everything that the optimizer computes from it in float32 is post-processing.
Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1. Mironov 2012 shows why floating-point noise is unsafe.
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
_CHUNK = 1 << 18  # Rounding takes so many coordinates at a time, to bound its temporary memory.
MIXING = (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm)
Record = tuple[int, Any]  # A record's row number on the device, and a batch with this record alone.
Loss = Callable[[nn.Module, Any], tuple[Tensor, float]]


def check_example_gradients(model: nn.Module) -> None:
    """Check that a record's gradient depends on no other record, and that reading a record changes no weight.

    Raises:
        TrainingError: E-BN for batch normalisation, and for embeddings with ``max_norm``.
    """
    for name, module in model.named_modules():
        if isinstance(module, MIXING):
            raise TrainingError(
                "E-BN",
                f"{name} normalises over the batch. One record's gradient then depends on others, and no clip bounds "
                "that.",
                "use layer or group normalisation.",
            )
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise TrainingError(
                "E-BN",
                f"{name} has max_norm. It changes the rows that a record reads in the forward pass, without noise.",
                "leave out max_norm.",
            )


def examine_model_for_dp(model: nn.Module, loss: Loss, records: Sequence[Record], flat: Flat, key: Key) -> bool:
    """Train on some records and check that none leaves anything behind for the next.

    The first record's gradient must have the same bits again after the others. No parameter or buffer may change.

    Returns:
        False where training could take none of the records.
    Raises:
        TrainingError: E-BN where a record changes a later record's gradient.
    Guarantees: buffers and the gradient's storage are as they were before.
    """
    model.train()
    with unchanged_buffers(model):
        before = _state_digests(model)
        found = [
            _record_gradient(model, loss, r, flat, key) and _tensor_digest(flat.g_D) for r in (*records, records[0])
        ]
        after = _state_digests(model)
        flat.zero_grad()
    carrying = next((name for name in {**before, **after} if before.get(name) != after.get(name)), "")
    if not carrying and found[0] != found[-1]:
        carrying = "a layer or the loss"
    if carrying:
        raise TrainingError(
            "E-BN",
            f"{carrying} changes while a record is trained. Gradients of later records then depend on it, and no clip "
            "bounds that.",
            "use a model and a loss that keep no state between forward passes.",
        )
    return found[0] is not None


def _state_digests(model: nn.Module) -> dict[str, bytes]:
    """Compute a digest of every parameter and buffer, in place of a copy of the model."""
    return {name: _tensor_digest(x) for name, x in (*model.named_parameters(), *model.named_buffers())}


def _tensor_digest(x: Tensor) -> bytes:
    """Compute the digest of a tensor's bytes."""
    return hashlib.sha256(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).digest()


@contextmanager
def unchanged_buffers(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore a model's buffers on leaving, and on each call of the yielded function: same tensors, same values."""
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


def drawn_records(n: int, rate: float, key: Key) -> NDArray[np.int64]:
    """Draw the records of one step: int64[m], which may be empty.

    The draw depends on the key alone, through a cryptographic generator. Only the device knows the key, because a draw
    that others can guess amplifies no privacy.
    """
    return np.flatnonzero(prg.random_coins(key, n, rate)).astype(np.int64)


def taken_records(records: Callable[[NDArray[np.int64]], Sequence[Any]], rows: NDArray[np.int64]) -> Iterator[Record]:
    """Read records one by one, so that an unreadable record is the only one that is lost."""
    for i in range(rows.size):
        try:
            [batch] = records(rows[i : i + 1])
        except Exception as e:  # boundary: reading foreign data may raise anything
            LOG.warning("a record cannot be read and counts as zero: %s", type(e).__name__)
            continue
        yield int(rows[i]), batch


def noised_gradient(
    model: nn.Module,
    loss: Loss,
    records: Iterable[Record],
    flat: Flat,
    dp: StepNoise,
    expected: float,
    key: Key,
) -> tuple[float, float]:
    """Compute the noised gradient of one step into ``flat.g_D``.

    Args:
        records: the records of the step, each once.
        expected: q n, the fixed divisor. The number of drawn records is private.
        key: 32 secret bytes of this step. The noise comes from it, and a record's dropout from it and its row number.
    Returns:
        The summed loss of the records and the number of terms.
    Raises:
        CompositionError: E-PRECISION as ``grid.fit_noise_grid``.
    Guarantees:
        Any record moves the sum before the noise by at most C, and by half a step per coordinate of rounding, which
        ``grid.fit_noise_grid`` accounts for. A record counts as zero where its loss raises, or its loss or gradient is
        not finite. Nothing that leaves the device reveals that there was such a record.
    """
    on = grid.fit_noise_grid("record noise", dp.z, dp.clip, flat.g_D.numel())
    total_D, summed, terms = clipped_sum(model, loss, records, flat, dp.clip, on.step, key)
    total_D += grid.grid_noise(on, total_D.size, derive(key, "record noise"))
    flat.zero_grad()
    noised_D = flat.g_D.cpu().numpy()  # On the CPU this is the gradient's own memory.
    np.multiply(total_D, on.step / expected, out=noised_D, casting="same_kind")
    if flat.g_D.device.type != "cpu":
        flat.g_D.copy_(torch.from_numpy(noised_D))
    return summed, terms


def clipped_sum(
    model: nn.Module, loss: Loss, records: Iterable[Record], flat: Flat, clip: float, step: float, key: Key
) -> tuple[NDArray[np.int64], float, float]:
    """Sum the clipped and rounded gradients of records: sum_i round(g_i min(1, C / ||g_i||) / step).

    Args:
        records: each once. clip: C, model units. step: grid of the rounding, model units.
        key: secret bytes that decide a record's dropout, with its row number.
    Returns:
        int64[d] in steps, the summed loss of the records, and the number of terms.
    Guarantees:
        Any record moves the sum by at most C / step + sqrt(d) / 2, whatever the others are. A record counts as zero as
        in ``noised_gradient``. Weights and buffers are as they were.
    """
    total_D = np.zeros(flat.g_D.numel(), np.int64)
    summed, terms, weights_D = 0.0, 0.0, flat.w_D.clone()
    with unchanged_buffers(model) as restore:
        for record in records:
            measured = _record_gradient(model, loss, record, flat, key)
            restore()
            flat.w_D.copy_(weights_D)  # Only a noised step may change weights.
            if measured is None:
                continue
            g_D = flat.g_D.cpu().numpy()
            factor = min(1.0, clip * (1.0 - 2.0**-20) / max(measured.norm, 1e-30))
            for at in range(0, total_D.size, _CHUNK):
                part = np.multiply(g_D[at : at + _CHUNK], factor, dtype=np.float64)
                total_D[at : at + _CHUNK] += grid.rounded_to_noise_grid(part, step)
            summed, terms = summed + measured.loss * measured.terms, terms + measured.terms
    return total_D, summed, terms


class _Measured(NamedTuple):
    """The L2 norm of one record's gradient, its mean loss, and the number of terms of that mean."""

    norm: float
    loss: float
    terms: float


def _record_gradient(model: nn.Module, loss: Loss, record: Record, flat: Flat, key: Key) -> _Measured | None:
    """Compute one record's own gradient into ``flat.g_D``. None where its loss raises or anything is not finite."""
    row, batch = record
    flat.zero_grad()
    if not model.training:  # The record before may have failed half-way.
        model.train()
    with seeded(derive(key, "record", row)):
        try:
            mean, n = loss(model, batch)
            mean.backward()
            norm = torch.linalg.vector_norm(flat.g_D, dtype=torch.float64)
            measured = _Measured(float(norm), mean.item(), float(n))
        except Exception as e:  # boundary: a loss is foreign code, and what it raises may depend on the record
            LOG.warning("training fails on a record, and it counts as zero: %s", type(e).__name__)
            return None
    return measured if np.isfinite(measured.norm) and np.isfinite(measured.loss) else None
