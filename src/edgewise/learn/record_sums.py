"""The update of a device whose records are the unit of privacy in a hidden sum: its mean clipped gradient.

x = -step / R sum_(i in B) round(g_i min(1, C / ||g_i||) / step)

B holds all records of the device, or a secret choice of R of them. g_i is the gradient at the round's model. The device
adds its share of the noise where the update is encoded (``privacy.record_noise``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from edgewise.core.errors import StoreError
from edgewise.core.keys import derive, generator
from edgewise.core.training import FitRequest, RecordSums, Update
from edgewise.learn import dp_sgd
from edgewise.learn.computing import computing
from edgewise.learn.dp_sgd import Loss
from edgewise.learn.flat import Flat
from edgewise.learn.shards import Shard

LOG = logging.getLogger("edgewise")


def record_sum(
    model: Any,
    loss: Loss,
    shard_of: Callable[[FitRequest], Shard],
    flat: Flat,
    request: FitRequest,
    sums: RecordSums,
    moved: Callable[[Any], Any] = lambda batch: batch,
) -> Update:
    """Compute the sum of a device's clipped records as its update (see the module).

    A device that cannot train returns zeros, because no answer would reveal the effect of its text.

    Args:
        shard_of: opens the device's records. moved: moves a batch to the model's processor.
    Raises:
        StoreError: E-DISK where a shard cannot be written. A full disk reveals nothing about the text.
    """
    total_D, summed, terms = np.zeros(flat.g_D.numel(), np.int64), 0.0, 0.0
    try:
        shard = shard_of(request)
        rows = np.arange(shard.size)
        if shard.size > sums.records:
            chosen = generator(derive(request.secret, "chosen")).permutation(shard.size)
            rows = np.sort(chosen[: sums.records])
        records = ((row, moved(one)) for row, one in dp_sgd.taken_records(shard.records, rows))
        with computing(request.device):
            flat.write(request.params)
            key = derive(request.secret, "records")
            total_D, summed, terms = dp_sgd.clipped_sum(model, loss, records, flat, sums.clip, sums.step, key)
    except StoreError:
        raise
    except Exception:  # boundary: a shard and a loss are foreign code, and what they raise may depend on the text
        LOG.warning("device %.60r: local training failed, its sum is zero", request.device, exc_info=True)
    x = (total_D * (-sums.step / sums.records)).astype(np.float32)
    mean = summed / terms if terms else 0.0
    return Update(x, {"loss_first": mean, "loss_last": mean}, 0.0)
