"""The low bits of noised values give nothing away: an attack on floating point (Mironov 2012), and where it fails.

Where a sum T and its noise nearly cancel, y = T + n is small, and in floating point its last bits are those of n, which
is as large as T: y - T is a float32 number, whatever n was. If T is not the sum then y - T is hardly ever one. The
attacker knows all records but one, so it knows the sum with that one and without, and asks which of the two fits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.core.keys import derive, root
from edgewise.core.training import StepNoise
from edgewise.learn import dp_sgd
from edgewise.learn.flat import Flat
from edgewise.privacy import grid
from edgewise.privacy.noise import secret_normals

DIM, OTHERS, Z, TRIALS = 1 << 15, 4, 2.0, 40
RECORDS = [
    (i, (x,)) for i, x in enumerate(10.0 * torch.randn(OTHERS + 1, 1, DIM, generator=torch.Generator().manual_seed(1)))
]
NET = nn.Linear(DIM, 1, bias=False)
FLAT = Flat(list(NET.named_parameters()))
Values = NDArray[np.float64]


def loss(model: nn.Module, batch: tuple[Tensor]) -> tuple[Tensor, float]:
    return model(batch[0]).sum(), 1.0


def step(records: list[tuple[int, tuple[Tensor]]], z: float, key: bytes) -> Values:
    """The noised gradient of a device's step, as float32 gives it to the optimizer."""
    dp_sgd.noised_gradient(NET, loss, records, FLAT, StepNoise(1.0, z, 0.1), 1.0, key)
    return FLAT.g_D.numpy().astype(np.float64)


def score(y: Values, without: Values, with_it: Values) -> float:
    """Evidence, in nats, that the sum behind y is ``with_it``: on which float32 grid the noise would have been."""
    near = (np.abs(y) < np.minimum(np.abs(without), np.abs(with_it)) / 4.0) & (y != 0.0)
    found = 0.0
    for total, sign in ((with_it, 1.0), (without, -1.0)):
        noise = y[near] - total[near]
        short = noise.astype(np.float32)
        bits = np.log(np.spacing(np.abs(short)).astype(np.float64))
        found += sign * float(np.where(short == noise, bits, -30.0 - np.abs(bits)).sum())
    return found


def called(draw: Callable[[bool, int], Values], without: Values, with_it: Values) -> tuple[int, int]:
    """Rates at which the attacker says that the record was there: where it was, and where it was not."""
    there, away = (sum(score(draw(world, i), without, with_it) > 0.0 for i in range(TRIALS)) for world in (True, False))
    return there, away


def test_noise_added_in_float32_tells_who_is_in_the_sum() -> None:
    """That the attack works, on the mechanism as it is often written."""
    sums = [step(RECORDS[: OTHERS + world], 1e-12, root(1)).astype(np.float32) for world in (False, True)]

    def draw(world: bool, i: int) -> Values:
        noise = (Z * secret_normals(derive(root(2), world, i), DIM)).astype(np.float32)
        return (sums[world] + noise).astype(np.float64)

    there, away = called(draw, *(x.astype(np.float64) for x in sums))
    assert there >= 0.9 * TRIALS
    assert away <= 0.1 * TRIALS


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_steps_of_dp_sgd_do_not(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """``exact``: the attacker rounds the sums to the grid as the device does; else it knows them to float32."""
    with monkeypatch.context() as patched:
        if exact:
            patched.setattr(grid, "grid_noise", lambda on, n, key: np.zeros(n, np.int64))
        sums = [step(RECORDS[: OTHERS + world], Z if exact else 1e-12, root(1)) for world in (False, True)]
    there, away = called(lambda world, i: step(RECORDS[: OTHERS + world], Z, derive(root(2), world, i)), *sums)
    assert abs(there - away) <= 0.35 * TRIALS  # three standard deviations of two fair coins
