"""Audit DP-SGD with canaries: take real steps on planted records and score each by an attacker's view.

Shape suffixes: M = canaries, one coordinate each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.frame import LocalRule
from edgewise.core.keys import Key
from edgewise.core.training import FitRequest, RecordSums, StepNoise
from edgewise.core.vector import Vector
from edgewise.learn.flat import Flat
from edgewise.learn.record_sums import record_sum
from edgewise.learn.train import fit
from edgewise.plan.recipe.sections import TrainingSection

LENGTH = 4.0  # A canary's gradient is so many clips long, so that a missing clip shows.
_STEP = TrainingSection(optimizer="sgd", clip_grad=0.0)


class _Line(nn.Module):
    """A model with one weight per canary."""

    def __init__(self, m: int) -> None:
        super().__init__()
        self.w_M = nn.Parameter(torch.zeros(m))


def _canary_loss(model: nn.Module, canary: Any) -> tuple[Tensor, float]:
    """Compute a loss whose gradient is ``LENGTH`` clips long and points along the canary's own coordinate.

    With ``turns`` it points back once the weight is no longer 0.
    """
    i, length, turns = canary
    back = turns and bool(model.w_M[i] != 0.0)
    return model.w_M[i] * (-length if back else length), 1.0


def score_canaries_by_step(dp: StepNoise, present: NDArray[np.bool_], key: Key) -> NDArray[np.float64]:
    """Score every canary by one step of ``train.fit`` under ``dp``: its coordinate of the noised sum, in clips.

        score_i = sum_j min(1, 4) e_j[i] [j present] + N(0, z^2)

    Presence moves a canary's score by 1 under noise of z, so 1 / z is the mu of one step for one record. The canaries'
    gradients are orthogonal, so a canary's score does not depend on the presence of others.

    Args:
        present: bool[M], True for each record that the step has drawn.
    Returns:
        float64[M], the scores.
    Guarantees:
        The code is that of a device: ``fit`` with its ``dp``, and so ``dp_sgd.noised_gradient``. The divisor is 1, and
        the optimizer is plain SGD with a rate of 1 from weights of zero. Both come after the noise.
    """
    return _noised_steps(dp, present, np.zeros(present.size, bool), key, 1, 0.0)


def score_canaries_by_pairs(
    dp: StepNoise, present: NDArray[np.bool_], turns: NDArray[np.bool_], one: Key, two: Key
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Score canaries as ``score_canaries_by_step``, by the first and second step of a round and the first step of
    another round.

    Args:
        present: bool[M], the records that all three steps draw.
        turns: bool[M], the canaries whose gradient points back in the second and the third step. A gradient may depend
            on the weights in any way.
        one, two: a device's secrets of the two rounds.
    Guarantees:
        The second step is the difference of a fit of two steps and a fit of one. Both share the first step, because
        they share the secret.
    """
    first, both = (_noised_steps(dp, present, turns, one, steps, 0.0) for steps in (1, 2))
    return first, both - first, _noised_steps(dp, present, turns, two, 1, 1.0)


def _noised_steps(
    dp: StepNoise, present: NDArray[np.bool_], turns: NDArray[np.bool_], key: Key, steps: int, start: float
) -> NDArray[np.float64]:
    """Return the sum of ``steps`` noised steps from weights that all are ``start``, in clips."""
    line = _Line(present.size)
    flat = Flat(list(line.named_parameters()))
    records = [(int(i), (int(i), LENGTH * dp.clip, bool(turns[i]))) for i in np.flatnonzero(present)]
    rule, params = LocalRule(steps=steps, lr=1.0), np.full(present.size, start, np.float32)
    x = fit(line, _canary_loss, [records] * steps, flat, params, rule, _STEP, key, dp=dp, expected=1.0, secret=key).x
    return -x.astype(np.float64) / dp.clip


def canary_sum(sums: RecordSums, present: NDArray[np.bool_], key: Key) -> Vector:
    """Return the update of a device that sums clipped records: the canaries that are present (``record_sums``).

        x_i = -step / R round(min(1, 4) C / step) [i present]

    Guarantees: the code is that of a device.
    """
    line = _Line(present.size)
    flat = Flat(list(line.named_parameters()))
    rows = np.flatnonzero(present)
    params, rule = np.zeros(present.size, np.float32), LocalRule(steps=1, lr=1.0)
    request = FitRequest("canaries", 0, params, rule, key, key)
    shard: Any = _Canaries(rows, LENGTH * sums.clip)
    return record_sum(line, _canary_loss, lambda _: shard, flat, request, sums).x


class _Canaries:
    """A shard of canaries. Each is the record of one coordinate."""

    def __init__(self, rows: NDArray[np.int64], length: float) -> None:
        self._rows, self._length = rows, length
        self.size, self.count = rows.size, rows.size

    def records(self, at: NDArray[np.int64]) -> list[tuple[int, float, bool]]:
        """Return the canaries of some rows."""
        return [(int(i), self._length, False) for i in self._rows[at]]
