"""Laws of records under secure aggregation: a record's part is bounded, and shares add up to the planned noise."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewise.codecs.quantize.wrap import wrap
from edgewise.core.errors import EdgewiseError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import Turn, derive, root
from edgewise.core.pipeline import Pipeline, pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.training import FitRequest, RecordSums
from edgewise.core.vector import Spec
from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.merges.ring import ring_sum
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.privacy import record_noise as module
from edgewise.privacy.record_noise import record_noise, record_step, size_record_noise

DIM, C, R, N, HONEST = 24, 0.5, 8, 5, 4
SPEC = Spec.of([("w", (DIM,), "float32")])
SPACE = Space(DIM, Quorum(N, N, N - HONEST), population=N)


class Line(nn.Module):
    """Each record's gradient is the record itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(DIM))


def loss(model: Any, batch: Any) -> tuple[Tensor, float]:
    return (batch[0] @ model.w).mean(), float(len(batch[0]))


def trainer(records: NDArray[np.float32]) -> TorchTrainer:
    made = TorchTrainer(
        Line(), loss, {"a": TensorShard((torch.from_numpy(records),), (torch.zeros(1, DIM),))}, TrainingSection()
    )
    made.sum_records(RecordSums(C, record_step(C, DIM), R))
    return made


def device_sum(records: NDArray[np.float32], secret: int = 0) -> NDArray[np.float32]:
    """Return a device's update by the code that devices train with."""
    key = derive(root(5), "secret", secret)
    request = FitRequest("a", 0, np.zeros(DIM, np.float32), LocalRule(steps=1, lr=1.0), key, key)
    return trainer(records).fit(request).x


def pipe(z: float) -> Pipeline:
    return pipeline(SPACE, [record_noise(SPEC, z, C, R), wrap()], ring_sum())


def encoded(it: Pipeline, x: NDArray[np.float32], device: int = 0, round: int = 0) -> NDArray[np.int64]:
    """Return the integers that a device masks, lifted."""
    turn = Turn(round, derive(root(1), round), derive(root(2), round, device))
    body = it.encode(x, {}, 1.0, it.init(), turn)[0].body.astype(np.int64)
    modulus = it.encoded.grid.modulus
    return np.where(body >= modulus // 2, body - modulus, body)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "discrete_gaussian", lambda s, n, key: np.zeros(n, np.int64))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, R), size=st.sampled_from([1e-6, 0.3, 1.0, 1e6]), data=st.data())
def test_one_record_moves_the_sum_by_the_claimed_sensitivity(
    seed: int, n: int, size: float, data: st.DataObject
) -> None:
    """The neighbouring data set lacks one record. Both sums are those that devices would mask."""
    rng = np.random.default_rng(seed)
    records = (rng.standard_normal((n, DIM)) * size * 10.0 ** rng.uniform(-3, 3, (n, 1))).astype(np.float32)
    records[data.draw(st.integers(0, n - 1))] = np.eye(DIM, dtype=np.float32)[seed % DIM] * 1e9
    gone = data.draw(st.integers(0, n - 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "discrete_gaussian", lambda s, n, key: np.zeros(n, np.int64))
        whole, without = (encoded(pipe(1.0), device_sum(rows)) for rows in (records, np.delete(records, gone, 0)))
    moved = sqrt(int(((whole - without) ** 2).sum()))
    sizing = size_record_noise(N, HONEST, 1.0, C, R, DIM)
    assert moved <= sizing.d2
    longest = sqrt(int((whole**2).sum()))
    assert longest <= n * sizing.d2


@pytest.mark.usefixtures("quiet")
def test_the_bound_is_reached() -> None:
    """Slack would hide a mistake: R equal records add up to R clips, and none of them is cut."""
    records = np.tile(np.full(DIM, 3.0, np.float32), (R, 1))
    sizing = size_record_noise(N, HONEST, 1.0, C, R, DIM)
    sums = encoded(pipe(1.0), device_sum(records))
    assert sqrt(int((sums**2).sum())) > 0.98 * R * sizing.d2
    np.testing.assert_allclose(device_sum(records), -C / sqrt(DIM), rtol=0.01)


@pytest.mark.usefixtures("quiet")
def test_of_more_records_a_secret_choice_counts() -> None:
    records = np.eye(DIM, dtype=np.float32) * 9.0
    sums = [device_sum(records, secret) for secret in range(2)]
    assert [int(np.count_nonzero(x)) for x in sums] == [R, R]
    assert (sums[0] != sums[1]).any()


@pytest.mark.usefixtures("quiet")
def test_the_mean_of_devices_is_exact() -> None:
    it, rng = pipe(1.0), np.random.default_rng(3)
    devices = [device_sum(rng.standard_normal((R - 1, DIM)).astype(np.float32)) for _ in range(N)]
    total = it.start_sum()
    for i, x in enumerate(devices):
        turn = Turn(0, derive(root(1), 0), derive(root(2), 0, i))
        total = it.add(total, it.encode(x, {}, 1.0, it.init(), turn)[0], turn)
    released = it.release(total, Turn(0, derive(root(1), 0)), root(3), it.start_memory())[0]
    np.testing.assert_allclose(released.mean, np.mean(devices, axis=0, dtype=np.float64), atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("z", [0.8, 22.0])
def test_shares_add_up_to_the_planned_noise(z: float) -> None:
    """The shares of as many devices as surely survive have a standard deviation of at least z clips of one record."""
    it, sizing = pipe(z), size_record_noise(N, HONEST, z, C, R, DIM)
    zero = np.zeros(DIM, np.float32)
    sums = [sum(encoded(it, zero, device, round) for device in range(HONEST)) for round in range(200)]
    std = float(np.std(sums))
    assert std == pytest.approx(sizing.s * sqrt(HONEST), rel=0.05)
    assert sizing.s * sqrt(HONEST) * sizing.step >= z * C
    assert sizing.rho == pytest.approx(0.5 / z**2, rel=0.03)


@pytest.mark.parametrize(
    ("space", "code"),
    [
        (SPACE.but(l2=1.0), "E-ORDER"),
        (SPACE.but(dim=DIM - 1), "E-ORDER"),
        (SPACE.but(head=("loss_last",)), "E-STATS"),
        (SPACE.but(head=("weight",)), "E-WEIGHT"),
        (SPACE.but(adjacency="add_remove"), "E-ADJ-MIX"),
        (SPACE.but(quorum=Quorum(2, 5, 2)), "E-NMIN"),
    ],
)
def test_what_would_break_the_bound_is_refused(space: Space, code: str) -> None:
    with pytest.raises(EdgewiseError) as caught:
        record_noise(SPEC, 1.0, C, R).infer(space)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("n", "z", "records", "dim", "code"),
    [(4, 1.0, 1 << 14, 1 << 20, "E-PRECISION"), (1 << 16, 1.0, 1 << 8, 256, "E-WRAP"), (4, 1e9, 8, 64, "E-VALUE")],
)
def test_sums_that_no_number_holds_are_refused(n: int, z: float, records: int, dim: int, code: str) -> None:
    with pytest.raises(EdgewiseError) as caught:
        size_record_noise(n, n, z, C, records, dim)
    assert caught.value.code == code
