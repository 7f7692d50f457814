"""Record-level DP-SGD: one record cannot do more than the clip allows, the noise is the promised one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.space import Quorum, Space
from edgewise.core.vector import Spec
from edgewise.engine.ports import FitRequest
from edgewise.learn import dp_sgd
from edgewise.learn.dp_sgd import RecordDp
from edgewise.learn.flat import Flat
from edgewise.learn.torch_trainer import TensorShard, TorchTrainer
from edgewise.plan.private import Taking, private
from edgewise.plan.recipe import TrainingSection, parse

KEY = root(4)


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
    return F.cross_entropy(model(batch[0]), batch[1]), len(batch[0])


G = torch.Generator().manual_seed(1)
X, Y = torch.randn(40, 5, generator=G), torch.randint(0, 3, (40,), generator=G)
RECORDS = [(X[i : i + 1], Y[i : i + 1]) for i in range(40)]


def noised(records: list, dp: RecordDp, key: bytes = KEY) -> np.ndarray:
    model = net()
    flat = Flat(list(model.named_parameters()))
    dp_sgd.gradient(model, loss, records, flat, dp, 10.0, key)
    return flat.g_D.numpy().copy()


def test_without_clip_and_noise_it_is_the_plain_gradient() -> None:
    model = net()
    flat = Flat(list(model.named_parameters()))
    mean, n = loss(model, (X, Y))
    (mean * n / 10.0).backward()
    np.testing.assert_allclose(noised(RECORDS, RecordDp(1e3, 1e-9, 1.0)), flat.g_D.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e20])
def test_one_record_moves_the_sum_by_the_clip_at_most(scale: float) -> None:
    dp = RecordDp(0.5, 1e-6, 1.0)
    worst = (X[:1] * scale, Y[:1])
    moved = 10.0 * (noised([*RECORDS, worst], dp).astype(np.float64) - noised(RECORDS, dp))
    assert np.linalg.norm(moved) <= 0.5 * (1 + 1e-5)


def test_a_record_that_is_not_finite_counts_as_zero() -> None:
    dp = RecordDp(0.5, 1e-6, 1.0)
    bad = (torch.full((1, 5), float("nan")), Y[:1])
    np.testing.assert_array_equal(noised([*RECORDS, bad], dp), noised(RECORDS, dp))


def test_the_noise_has_the_promised_size_and_is_there_without_records() -> None:
    dp = RecordDp(0.5, 2.0, 1.0)
    off = np.stack([10.0 * noised([], dp, derive(KEY, i)) for i in range(300)])
    assert off.std() == pytest.approx(1.0, rel=0.02)
    assert abs(off.mean()) < 0.03
    np.testing.assert_array_equal(noised([], dp), noised([], dp))
    clean = 10.0 * (noised(RECORDS, dp) - noised([], dp))
    np.testing.assert_allclose(clean, 10.0 * noised(RECORDS, RecordDp(0.5, 1e-6, 1.0)), atol=1e-5)


def test_batches_are_poisson() -> None:
    sizes = np.array([dp_sgd.drawn(200, 0.1, derive(KEY, i)).size for i in range(600)])
    assert sizes.mean() == pytest.approx(20, abs=0.6)
    assert sizes.var() == pytest.approx(18, rel=0.2)
    assert dp_sgd.drawn(5, 0.0, KEY).size == 0


def test_layers_that_mix_records_are_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        dp_sgd.check(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert caught.value.code == "E-BN"
    dp_sgd.check(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_a_trainer_noises_its_steps() -> None:
    training = TrainingSection(optimizer="sgd", batch=8, clip_grad=0.0)
    trainer = TorchTrainer(net(), loss, {"d": TensorShard((X, Y), (X[:2], Y[:2]))}, training)
    request = FitRequest("d", 0, trainer.initial(), LocalRule(steps=4, lr=0.1), KEY, KEY)
    plain = trainer.fit(request).x
    trainer.record_dp = RecordDp(1.0, 1.0, 0.2)
    one, again = trainer.fit(request), trainer.fit(request)
    np.testing.assert_array_equal(one.x, again.x)
    assert np.linalg.norm(one.x - plain) > 0.01
    np.testing.assert_array_equal(trainer.fit(replace(request, key=root(5))).x, one.x)
    assert np.linalg.norm(trainer.fit(replace(request, secret=root(5))).x - one.x) > 0.01
    trainer.record_dp = RecordDp(1.0, 1.0, 0.001)  # steps without a single record
    assert np.linalg.norm(trainer.fit(request).x) > 0


RECIPE = """
privacy = "record"
[dp]
epsilon = 4.0
delta = 1e-5
clip_l2 = 1.0
sample_rate = 0.05
[round]
rounds = 3
[training]
local_steps = 4
"""


SPEC = Spec.of([("x", (10,), "float32")])


def spend(text: str, space: Space):
    return private(parse(text), SPEC, space, [[]], Taking("all", 1.0, 4, 3, 1, "all"), False)[1]


@pytest.mark.slow
def test_epsilon_counts_every_local_step() -> None:
    from edgewise.privacy.accountant import COARSE, epsilon
    from edgewise.privacy.spend import Event

    space = Space(10, Quorum(2, 4), universe=10)
    found = spend(RECIPE, space)
    assert found.card.against_server == pytest.approx(4.0, rel=2e-3)
    one = Event("gaussian", "add_remove", z=found.z, sampling="poisson", rate=0.05)
    assert epsilon({one: 12}, 1e-5, COARSE) == pytest.approx(4.0, rel=2e-3)
    assert spend(RECIPE.replace("local_steps = 4", "local_steps = 8"), space).z > found.z


@pytest.mark.parametrize("bad", ["raises", "infinite loss", "no number"])
def test_a_record_that_training_cannot_take_leaves_no_trace(bad: str) -> None:
    """The device sends the update that it would send without the record, noise and all."""
    x = X.clone()
    x[0] = {"raises": 777.0, "infinite loss": 3e38, "no number": np.nan}[bad]

    def broken(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
        if bad == "raises" and bool((batch[0] == 777.0).any()):
            raise IndexError("index out of range in self")
        if bad == "infinite loss":  # with a finite gradient
            return F.huber_loss(10.0 * batch[0][:, :1] + model(batch[0] * 1e-38)[:, :1], batch[1][:, None].float()), 1.0
        return loss(model, batch)

    class Whole(TensorShard):
        """Of which every step takes record 0 and some others."""

        def records(self, rows: np.ndarray) -> list:
            return super().records(np.union1d(rows, [0]) if self.first else rows[rows != 0])

    def fitted(first: bool) -> np.ndarray:
        Whole.first = first
        training = TrainingSection(optimizer="sgd", batch=8, clip_grad=0.0)
        trainer = TorchTrainer(net(), broken, {"d": Whole((x, Y))}, training)
        trainer.record_dp = RecordDp(1.0, 1.0, 0.2)
        return trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=3, lr=0.1), KEY, root(9))).x

    there, away = fitted(True), fitted(False)
    np.testing.assert_array_equal(there, away)
    assert np.isfinite(there).all()
    assert there.all()


@pytest.mark.parametrize("where", ["size", "records", "everything"])
def test_a_device_that_cannot_train_sends_noise_alone(where: str) -> None:
    class Broken(TensorShard):
        @property
        def size(self) -> int:
            if where == "size":
                raise OSError("unreadable")
            return super().size

        def records(self, rows: np.ndarray) -> list:
            if where == "records":
                raise OSError("unreadable")
            return super().records(rows)

    def shard(device: str) -> TensorShard:
        if where == "everything":
            raise DataError("E-DEVICE-DATA", "no text.")
        return Broken((X, Y))

    trainer = TorchTrainer(net(), loss, shard, TrainingSection(optimizer="adamw", batch=8), devices=("d",))
    trainer.record_dp = RecordDp(1.0, 1.0, 0.2)
    x = trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=2, lr=0.1), KEY, root(9))).x
    assert np.isfinite(x).all()
    assert x.all()
