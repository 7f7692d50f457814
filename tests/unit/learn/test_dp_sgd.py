"""Record-level DP-SGD: one record cannot do more than the clip allows, the noise is the promised one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.space import Quorum, Space
from edgewise.core.training import FitRequest, StepNoise
from edgewise.core.vector import Spec
from edgewise.learn import dp_sgd
from edgewise.learn.flat import Flat
from edgewise.learn.shards import TensorShard
from edgewise.learn.torch_task import TorchTrainer
from edgewise.plan.mechanisms.known import mechanism_of, recipe_promise
from edgewise.plan.noise import with_mechanism
from edgewise.plan.recipe.recipe import parse
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.sampling import recipe_sampling

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


def noised(records: list, dp: StepNoise, key: bytes = KEY) -> np.ndarray:
    model = net()
    flat = Flat(list(model.named_parameters()))
    dp_sgd.noised_gradient(model, loss, list(enumerate(records)), flat, dp, 10.0, key)
    return flat.g_D.numpy().copy()


def test_without_clip_and_noise_it_is_the_plain_gradient() -> None:
    model = net()
    flat = Flat(list(model.named_parameters()))
    mean, n = loss(model, (X, Y))
    (mean * n / 10.0).backward()
    np.testing.assert_allclose(noised(RECORDS, StepNoise(1e3, 1e-9, 1.0)), flat.g_D.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e20])
def test_one_record_moves_the_sum_by_the_clip_at_most(scale: float) -> None:
    dp = StepNoise(0.5, 1e-6, 1.0)
    worst = (X[:1] * scale, Y[:1])
    moved = 10.0 * (noised([*RECORDS, worst], dp).astype(np.float64) - noised(RECORDS, dp))
    assert np.linalg.norm(moved) <= 0.5 * (1 + 1e-5)


def test_a_record_that_is_not_finite_counts_as_zero() -> None:
    dp = StepNoise(0.5, 1e-6, 1.0)
    bad = (torch.full((1, 5), float("nan")), Y[:1])
    np.testing.assert_array_equal(noised([*RECORDS, bad], dp), noised(RECORDS, dp))


@pytest.mark.slow
def test_the_noise_has_the_promised_size_and_is_there_without_records() -> None:
    dp = StepNoise(0.5, 2.0, 1.0)
    off = np.stack([10.0 * noised([], dp, derive(KEY, i)) for i in range(300)])
    assert off.std() == pytest.approx(1.0, rel=0.02)
    assert abs(off.mean()) < 0.03
    np.testing.assert_array_equal(noised([], dp), noised([], dp))
    clean = 10.0 * (noised(RECORDS, dp) - noised([], dp))
    np.testing.assert_allclose(clean, 10.0 * noised(RECORDS, StepNoise(0.5, 1e-6, 1.0)), atol=1e-5)


def test_batches_are_poisson() -> None:
    sizes = np.array([dp_sgd.drawn_records(200, 0.1, derive(KEY, i)).size for i in range(600)])
    assert sizes.mean() == pytest.approx(20, abs=0.6)
    assert sizes.var() == pytest.approx(18, rel=0.2)
    assert dp_sgd.drawn_records(5, 0.0, KEY).size == 0


def test_layers_that_mix_records_are_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        dp_sgd.check_example_gradients(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert caught.value.code == "E-BN"
    dp_sgd.check_example_gradients(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


def test_a_trainer_noises_its_steps() -> None:
    training = TrainingSection(optimizer="sgd", batch=8, clip_grad=0.0)
    trainer = TorchTrainer(net(), loss, {"d": TensorShard((X, Y), (X[:2], Y[:2]))}, training)
    request = FitRequest("d", 0, trainer.initial(), LocalRule(steps=4, lr=0.1), KEY, KEY)
    plain = trainer.fit(request).x
    trainer.step_noise = StepNoise(1.0, 1.0, 0.2)
    one, again = trainer.fit(request), trainer.fit(request)
    np.testing.assert_array_equal(one.x, again.x)
    assert np.linalg.norm(one.x - plain) > 0.01
    np.testing.assert_array_equal(trainer.fit(replace(request, key=root(5))).x, one.x)
    assert np.linalg.norm(trainer.fit(replace(request, secret=root(5))).x - one.x) > 0.01
    trainer.step_noise = StepNoise(1.0, 1.0, 0.001)  # steps without a single record
    assert np.linalg.norm(trainer.fit(request).x) > 0


RECIPE = """
privacy = "local_dp"
[dp]
unit = "example"
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
    recipe = parse(text)
    promise, mechanism = recipe_promise(recipe.privacy, recipe.dp, False), mechanism_of(recipe.privacy, recipe.dp)
    assert mechanism is not None
    return with_mechanism(recipe, SPEC, space, [[]], recipe_sampling(recipe.round, 4), promise, mechanism)[2]


@pytest.mark.slow
def test_epsilon_counts_every_local_step() -> None:
    from edgewise.privacy.accountant import COARSE, epsilon
    from edgewise.privacy.spend import PrivacyEvent

    space = Space(10, Quorum(2, 4))
    found = spend(RECIPE, space)
    assert found.card.against_server == pytest.approx(4.0, rel=2e-3)
    one = PrivacyEvent("gaussian", "add_remove", z=found.z, sampling="poisson", rate=0.05)
    assert epsilon({one: 12}, 1e-5, COARSE) == pytest.approx(4.0, rel=2e-3)
    assert spend(RECIPE.replace("local_steps = 4", "local_steps = 8"), space).z > found.z


@pytest.mark.quick(sample=1)
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
        """Of which every step takes all records, record 0 only where it is there."""

        def records(self, rows: np.ndarray) -> list:
            return super().records(rows if self.first else rows[rows != 0])

    def fitted(first: bool) -> np.ndarray:
        Whole.first = first
        training = TrainingSection(optimizer="sgd", batch=8, clip_grad=0.0)
        trainer = TorchTrainer(net(), broken, {"d": Whole((x, Y))}, training)
        trainer.step_noise = StepNoise(1.0, 1.0, 1.0)
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
    trainer.step_noise = StepNoise(1.0, 1.0, 0.2)
    x = trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=2, lr=0.1), KEY, root(9))).x
    assert np.isfinite(x).all()
    assert x.all()


def dropping() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 3))


def failing(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Fails half-way on a record of 777: after its dropout was drawn, with the model in evaluation mode."""
    value = loss(model, batch)
    if bool((batch[0] == 777.0).all()):
        model.eval()
        raise IndexError("index out of range in self")
    return value


FAILS = torch.full((1, 5), 777.0), Y[:1]


@pytest.mark.parametrize("others", [[], [0], [0, 1, 2], [0, "fails"], ["fails"]], ids=str)
def test_a_record_has_the_same_gradient_whoever_else_is_there(others: list) -> None:
    """To the bit, under dropout: the others' sum and the sum with it differ by what it is alone."""
    model = dropping()
    flat = Flat(list(model.named_parameters()))
    before = [(90, FAILS) if i == "fails" else (i, RECORDS[i]) for i in others]

    def total(records: list) -> np.ndarray:
        dp_sgd.noised_gradient(model, failing, records, flat, StepNoise(0.5, 1e-6, 1.0), 1.0, KEY)
        return flat.g_D.numpy().astype(np.float64)

    mine = (7, RECORDS[7])
    noise = total([])
    alone = total([mine]) - noise
    assert np.linalg.norm(alone) > 0.1
    np.testing.assert_allclose(total([*before, mine]) - total(before), alone, atol=2e-7)
    np.testing.assert_allclose(total([mine, *before]) - total(before), alone, atol=2e-7)


def test_dropout_is_drawn_anew_for_each_record_and_step() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(256, 1, bias=False))
    flat = Flat(list(model.named_parameters()))
    ones = (torch.ones(1, 256),)

    def masked(row: int, key: bytes) -> np.ndarray:
        dp_sgd.noised_gradient(
            model, lambda m, b: (m(b[0]).sum(), 1), [(row, ones)], flat, StepNoise(1.0, 1e-6, 1.0), 1.0, key
        )
        return flat.g_D.numpy() > 1e-3

    masks = [masked(row, derive(KEY, i)) for row in range(3) for i in range(2)]
    same = [np.mean(a == b) for n, a in enumerate(masks) for b in masks[:n]]
    assert max(same) < 0.7
    assert min(same) > 0.3
    np.testing.assert_array_equal(masks[0], masked(0, derive(KEY, 0)))


def test_who_watches_dropout_learns_nothing_of_a_record() -> None:
    """The attack: the others' masks are public, and shift when a record is there. Every step of a trainer is watched,
    almost without noise: the record moves the sum by its clip and no more."""
    x, y = (
        torch.where(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)) > 0, 1.0, -1.0),
        torch.ones(64, 1),
    )

    def moved(there: bool) -> np.ndarray:
        class Shard(TensorShard):
            def records(self, rows: np.ndarray) -> list:
                return super().records(rows if there else rows[rows != 0])

        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False))
        nn.init.zeros_(model[1].weight)
        training = TrainingSection(optimizer="sgd", lr=1.0, batch=4, clip_grad=0.0)
        trainer = TorchTrainer(
            model, lambda m, b: (1e3 * (m(b[0]) - b[1]).square().sum(), 1), {"d": Shard((x, y))}, training
        )
        trainer.noise_steps(StepNoise(1.0, 1e-3, 1.0))
        return 64.0 * trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=1, lr=1.0), KEY, root(9))).x

    assert np.linalg.norm(moved(True) - moved(False)) <= 1.0 + 1e-4


class Ema(nn.Module):
    """A running mean that is no batch normalisation. ``kind``: where it is kept, and how it is changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.plain = kind, torch.zeros(5)
        self.register_buffer("mean", torch.zeros(5), persistent=False)
        self.fixed = nn.Parameter(torch.zeros(5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = {"plain": self.plain, "parameter": self.fixed}.get(self.kind, self.mean)
        if self.training and self.kind == "replaced":
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        elif self.training and (self.kind != "rarely" or bool(x[0, 0] > 1e3)):
            with torch.no_grad():
                held.mul_(0.9).add_(0.1 * x.mean(0))
        return x - held.clone()


def begin(trainer: TorchTrainer, at: str) -> None:
    if at == "setup":
        trainer.noise_steps(StepNoise(1.0, 1.0, 0.2))
        return
    trainer.step_noise = StepNoise(1.0, 1.0, 0.2)
    trainer.fit(FitRequest("d", 0, trainer.initial(), LocalRule(steps=1, lr=0.1), KEY, KEY))


@pytest.mark.parametrize(
    ("kind", "named"),
    [("buffer", "0.mean"), ("replaced", "0.mean"), ("parameter", "0.fixed"), ("plain", "a layer or the loss")],
)
@pytest.mark.parametrize("at", ["setup", "fit"])
def test_what_remembers_records_is_refused_by_name(kind: str, named: str, at: str) -> None:
    trainer = TorchTrainer(
        nn.Sequential(Ema(kind), net()), loss, {"d": TensorShard((X, Y))}, TrainingSection(optimizer="sgd", batch=8)
    )
    with pytest.raises(TrainingError, match=named) as caught:
        begin(trainer, at)
    assert caught.value.code == "E-BN"
    assert not trainer.model[0].mean.any()


@pytest.mark.parametrize("said", [None, "many"])
def test_a_record_of_no_number_of_terms_counts_as_zero(said: Any) -> None:
    """And the others count: what a loss says of one record must not silence its device."""

    def counting(model: nn.Module, batch: Any) -> tuple[torch.Tensor, Any]:
        mean, n = loss(model, batch)
        return mean, said if batch is FAILS else n

    def total(records: list) -> np.ndarray:
        model = net()
        flat = Flat(list(model.named_parameters()))
        dp_sgd.noised_gradient(model, counting, records, flat, StepNoise(0.5, 1e-6, 1.0), 1.0, KEY)
        return flat.g_D.numpy()

    mine = (7, RECORDS[7])
    np.testing.assert_array_equal(total([(90, FAILS), mine]), total([mine]))


def test_what_a_record_does_to_trained_weights_is_taken_back() -> None:
    """A layer that cuts its weights where a record is large: others' gradients, and what leaves, would show it."""

    class Cutting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if bool(x[0, 0] > 100.0):
                with torch.no_grad():
                    self.weight.mul_(0.1)
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(Cutting(5, 4), nn.Tanh(), nn.Linear(4, 3))
    flat = Flat(list(model.named_parameters()))
    before = flat.read()

    def total(records: list) -> np.ndarray:
        dp_sgd.noised_gradient(model, loss, records, flat, StepNoise(0.5, 1e-6, 1.0), 1.0, KEY)
        np.testing.assert_array_equal(flat.read(), before)
        return flat.g_D.numpy().astype(np.float64)

    mine, large = (7, RECORDS[7]), (90, FAILS)
    np.testing.assert_allclose(total([large, mine]) - total([large]), total([mine]) - total([]), atol=2e-7)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_rows_that_are_shortened_when_they_are_read_are_refused(kind: Any) -> None:
    with pytest.raises(TrainingError, match="max_norm") as caught:
        dp_sgd.check_example_gradients(nn.Sequential(kind(10, 4, max_norm=1.0)))
    assert caught.value.code == "E-BN"
    dp_sgd.check_example_gradients(nn.Sequential(kind(10, 4)))


@pytest.mark.parametrize("at", ["setup", "fit"])
def test_a_trainer_refuses_batch_normalisation(at: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    trainer = TorchTrainer(model, loss, {"d": TensorShard((X, Y))}, TrainingSection(optimizer="sgd", batch=8))
    with pytest.raises(TrainingError, match="normalises over the batch") as caught:
        begin(trainer, at)
    assert caught.value.code == "E-BN"


def test_what_a_rare_record_leaves_in_a_buffer_is_taken_back() -> None:
    """No examination finds a layer that remembers one record in many; its buffer does not outlive that record."""
    model = nn.Sequential(Ema("rarely"), net())
    flat = Flat([(n, p) for n, p in model.named_parameters() if p.requires_grad])
    rare = (3, (torch.full((1, 5), 1e4), Y[:1]))
    assert dp_sgd.examine_model_for_dp(model, loss, list(enumerate(RECORDS[:2])), flat, KEY)

    def total(records: list) -> np.ndarray:
        dp_sgd.noised_gradient(model, loss, records, flat, StepNoise(0.5, 1e-6, 1.0), 1.0, KEY)
        assert not model[0].mean.any()
        return flat.g_D.numpy().astype(np.float64)

    mine = (7, RECORDS[7])
    np.testing.assert_allclose(total([rare, mine]) - total([rare]), total([mine]) - total([]), atol=2e-7)
