"""Local training against plain torch: flat parameters, optimizers, accumulation, FedProx, clipping, failures."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from edgewise.core.errors import DataError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import Correction, FitRequest
from edgewise.learn import train
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.shards import TensorShard, row_order
from edgewise.learn.torch_task import TorchTrainer
from edgewise.learn.train import fit, is_hidden_matrix, orthogonalised
from edgewise.plan.recipe.sections import TrainingSection

KEY = root(0)


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3))


def data(n: int = 24, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=g), torch.randint(0, 3, (n,), generator=g)


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, float]:
    return F.cross_entropy(model(batch[0]), batch[1]), len(batch[0])


def counted(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``loss`` whose terms are counted in a tensor, as those of a mask."""
    mean, n = loss(model, batch)
    return mean, torch.ones(int(n), dtype=torch.bool).sum()


def section(**more: object) -> TrainingSection:
    return TrainingSection(**{"clip_grad": 0.0, "batch": 8, **more})  # type: ignore[arg-type]


def steps(n: int = 6, size: int = 8, parts: int = 1) -> list[list[tuple[torch.Tensor, ...]]]:
    x, y = data(n * size)
    batches = [(x[i : i + size], y[i : i + size]) for i in range(0, n * size, size)]
    return [list(zip(a.chunk(parts), b.chunk(parts), strict=True)) for a, b in batches]


def fitted(
    training: TrainingSection, rule: LocalRule | None = None, batches: list | None = None, model=None, pull: float = 0.0
):
    model = model or net()
    flat = Flat(list(model.named_parameters()))
    rule = rule or LocalRule(steps=6, lr=0.1)
    start = flat.read()
    result = fit(model, loss, batches or steps(), flat, start, rule, training, KEY, correction=Correction(pull))
    np.testing.assert_array_equal(flat.read() - start, result.x)
    return result


def plain(make, rule: LocalRule | None = None, clip: float = 0.0, prox: float = 0.0, batches: list | None = None):
    """The same in ordinary torch; FedProx as a term of the loss."""
    model, rule = net(), rule or LocalRule(steps=6, lr=0.1)
    start = [p.detach().clone() for p in model.parameters()]
    optimizer = make(model.parameters())
    for ((x, y),) in batches or steps():
        optimizer.zero_grad()
        pull = sum(((p - s) ** 2).sum() for p, s in zip(model.parameters(), start, strict=True))
        (F.cross_entropy(model(x), y) + prox / 2 * pull).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return np.concatenate([(p.detach() - s).flatten().numpy() for p, s in zip(model.parameters(), start, strict=True)])


@pytest.mark.parametrize(
    ("training", "make"),
    [
        (section(optimizer="sgd"), lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            section(optimizer="sgd", momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        ),
        (section(), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.0)),
        (section(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1)),
    ],
)
def test_optimizers_equal_torch(training: TrainingSection, make) -> None:
    np.testing.assert_allclose(fitted(training).x, plain(make), rtol=1e-5, atol=2e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch < 2.9 has no Muon to compare with")
@pytest.mark.parametrize(("decay", "bf16"), [(0.0, True), (0.1, True), (0.1, False)])
def test_muon_equals_torch_for_matrices_and_adamw_for_the_rest(decay: float, bf16: bool) -> None:
    """torch's Muon works in bfloat16 always: in float32 ours differs from it by bfloat16's rounding."""
    (x, y), reference = data(), net()
    matrices = [p for p in reference.parameters() if p.ndim == 2]  # 7 x 5 and 3 x 7: tall and wide
    vectors = [p for p in reference.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(matrices, lr=0.1, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(vectors, lr=0.1, weight_decay=decay)
    start = [p.detach().clone() for p in reference.parameters()]
    # The same gradients for both, since rounding in the weights would make them drift apart.
    mine = net()
    flat = Flat(list(mine.named_parameters()))
    arithmetic = torch.bfloat16 if bf16 else torch.float32
    optimizer = train.LocalOptimizer(section(optimizer="muon", weight_decay=decay), flat, arithmetic)
    optimizer.reset()
    for _ in range(4):
        reference.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        flat.g_D.copy_(torch.cat([p.grad.flatten() for p in reference.parameters()]))
        muon.step()
        adamw.step()
        optimizer.step(0.1)
    moved = torch.cat([(p.detach() - s).flatten() for p, s in zip(reference.parameters(), start, strict=True)])
    got = flat.w_D - torch.cat([s.flatten() for s in start])
    np.testing.assert_allclose(got, moved, atol=2e-3 if bf16 else 2e-2)
    assert moved.abs().max() > 0.15


def test_orthogonal_moves_all_singular_values_to_about_one_in_any_orientation_and_batch() -> None:
    x = torch.randn(4, 24, 60, generator=torch.Generator().manual_seed(3))
    u = orthogonalised(x)
    values = torch.linalg.svdvals(u)
    assert 0.6 < values.min() <= values.max() < 1.3
    torch.testing.assert_close(orthogonalised(x.mT), u.mT)
    torch.testing.assert_close(orthogonalised(x[1:2]), u[1:2])
    torch.testing.assert_close(orthogonalised(1e-3 * x), u, rtol=1e-3, atol=1e-4)
    assert not orthogonalised(torch.zeros(1, 3, 5)).any()  # a factor of LoRA has no gradient at first


@pytest.mark.parametrize("shape", [(64, 64), (128, 32), (32, 128)])
def test_a_step_of_muon_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    model = nn.Sequential(nn.Linear(shape[1], shape[0], bias=False))
    flat = Flat(list(model.named_parameters()))
    g = torch.randn(flat.spec.dim, generator=torch.Generator().manual_seed(5))
    for lr in (0.1, 0.01):
        optimizer, before = train.LocalOptimizer(section(optimizer="muon"), flat), flat.read()
        flat.g_D.copy_(g)
        optimizer.step(lr)
        rms = np.sqrt(np.mean(flat.minus(before) ** 2))
        assert rms == pytest.approx(0.2 * lr, rel=0.2)  # AdamW's typical step: 0.2 to 0.4 lr (Liu et al. 2025)


def test_muon_is_for_the_matrices_of_numbered_layers() -> None:
    names = {
        "model.embed_tokens.weight": False,
        "lm_head.weight": False,
        "model.layers.0.mlp.up_proj.weight": True,
        "model.layers.3.self_attn.q_proj.lora_A.weight": True,
        "transformer.h.11.attn.c_attn.weight": True,
    }
    assert {n: is_hidden_matrix(n, (8, 4)) for n in names} == names
    assert not is_hidden_matrix("model.layers.0.input_layernorm.weight", (8,))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(5, 3)  # its names have no number: AdamW alone
    moved = [fitted(section(optimizer=o), model=copy.deepcopy(head)).x for o in ("muon", "adamw")]
    np.testing.assert_allclose(*moved, rtol=1e-5)


def test_plain_sgd_is_bit_identical_to_torch() -> None:
    got = fitted(section(optimizer="sgd")).x
    np.testing.assert_array_equal(got, plain(lambda p: torch.optim.SGD(p, lr=0.1)))


def test_fedprox_is_the_gradient_of_half_mu_distance_squared_and_comes_before_clipping() -> None:
    for clip in (0.0, 0.05):
        training = section(optimizer="sgd", clip_grad=clip)
        got = fitted(training, pull=3.0).x
        expected = plain(lambda p: torch.optim.SGD(p, lr=0.1), clip=clip, prox=3.0)
        np.testing.assert_allclose(got, expected, atol=1e-6)
        assert np.abs(got - fitted(training).x).max() > (1e-3 if not clip else 0)


def test_a_shift_is_added_to_every_gradient_before_clipping() -> None:
    """One plain step moves by -rate times it; a long one is cut as a gradient is; frozen segments do not feel it."""
    model, training = net(), section(optimizer="sgd")
    flat = Flat(list(model.named_parameters()))
    start, shift = flat.read(), np.linspace(-1, 1, flat.spec.dim).astype(np.float32)
    one, before = LocalRule(steps=1, lr=0.1), shift.tobytes()

    def update(rule: LocalRule, training: TrainingSection, shift: np.ndarray | None) -> np.ndarray:
        return fit(model, loss, steps(), flat, start, rule, training, KEY, correction=Correction(shift=shift)).x

    np.testing.assert_allclose(update(one, training, shift) - update(one, training, None), -0.1 * shift, atol=1e-6)
    assert np.linalg.norm(update(one, section(optimizer="sgd", clip_grad=0.1), 100 * shift)) < 0.1 * 0.1 + 1e-6
    part = update(LocalRule(steps=2, lr=0.1, segments=ALL[2:]), training, shift)
    assert not part[: flat.spec.segments[2].start].any()
    assert shift.tobytes() == before


def test_clipping_equals_torch() -> None:
    got = fitted(section(optimizer="sgd", clip_grad=0.1)).x
    np.testing.assert_allclose(got, plain(lambda p: torch.optim.SGD(p, lr=0.1), clip=0.1), atol=1e-6)
    assert np.linalg.norm(got) <= 6 * 0.1 * 0.1 + 1e-6


ALL = ("0.weight", "0.bias", "3.weight", "3.bias")
WAYS = [
    section(optimizer="sgd", momentum=0.9, weight_decay=0.1, clip_grad=0.05),
    section(weight_decay=0.1, clip_grad=0.05),
    section(optimizer="muon", weight_decay=0.1, clip_grad=0.05),
]


@pytest.mark.parametrize("training", WAYS, ids=lambda t: t.optimizer)
@pytest.mark.parametrize("names", [ALL[2:], ALL[:1], (ALL[0], ALL[3])], ids=",".join)
def test_what_is_not_named_stays_to_the_bit(training: TrainingSection, names: tuple[str, ...]) -> None:
    """Decay, pull, clipping, momentum: nothing reaches a frozen segment, and it takes part in nothing."""
    model = net()
    flat = Flat(list(model.named_parameters()))
    start, rule = flat.read(), LocalRule(steps=6, lr=0.1, segments=names)
    used, pulled = train.LocalOptimizer(training, flat), Correction(0.7)
    fit(model, loss, steps(), flat, start, LocalRule(steps=6, lr=0.1), training, KEY, used, correction=pulled)
    x = fit(model, loss, steps(), flat, start, rule, training, KEY, used, correction=pulled).x  # buffers with a past
    moved = {s.name: x[s.start : s.stop].any() for s in flat.spec.segments}
    assert moved == {n: n in names for n in ALL}
    assert all(p.requires_grad for p in model.parameters())
    after = flat.read()
    for s in flat.spec.segments:
        if s.name not in names:
            assert after[s.start : s.stop].tobytes() == start[s.start : s.stop].tobytes()
    # The same as a model that has no other parameters to train.
    small = net()
    for n, p in small.named_parameters():
        p.requires_grad_(n in names)
    alone = Flat([(n, p) for n, p in small.named_parameters() if p.requires_grad])
    begin = alone.read()
    want = fit(small, loss, steps(), alone, begin, LocalRule(steps=6, lr=0.1), training, KEY, correction=pulled).x
    got = np.concatenate([x[s.start : s.stop] for s in flat.spec.segments if s.name in names])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)  # pieces round differently


@pytest.mark.parametrize("training", WAYS, ids=lambda t: t.optimizer)
def test_naming_all_segments_is_naming_none(training: TrainingSection) -> None:
    named = fitted(training, LocalRule(steps=6, lr=0.1, segments=ALL), pull=0.7).x
    np.testing.assert_array_equal(named, fitted(training, pull=0.7).x)


def test_frozen_parameters_take_gradients_again_after_a_failure() -> None:
    model = net()
    flat = Flat(list(model.named_parameters()))
    rule = LocalRule(steps=9, lr=0.1, segments=ALL[2:])
    with pytest.raises(TrainingError, match="E-TRAIN"):
        fit(model, loss, steps(), flat, flat.read(), rule, section(), KEY)
    assert all(p.requires_grad for p in model.parameters())


def test_accumulation_gives_the_gradient_of_the_whole_batch_also_with_uneven_parts() -> None:
    whole = fitted(section(optimizer="sgd"))
    for parts in (2, 3, 8):
        split = fitted(section(optimizer="sgd"), batches=steps(parts=parts))
        np.testing.assert_allclose(split.x, whole.x, atol=1e-6)
        assert split.loss_first == pytest.approx(whole.loss_first, abs=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sgd"])
def test_state_is_fresh_in_every_fit_and_the_request_decides_everything(optimizer: str) -> None:
    x, y = data()
    shards = {"a": TensorShard((x, y)), "b": TensorShard((x * 2, y))}
    training = section(batch=5, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    trainer = TorchTrainer(net(dropout=0.3), loss, shards, training)
    ask = FitRequest("a", 0, trainer.initial(), LocalRule(steps=7, lr=0.01), KEY, KEY)
    before = torch.random.get_rng_state()
    first = trainer.fit(ask)
    assert torch.equal(before, torch.random.get_rng_state())
    trainer.fit(FitRequest("b", 0, first.x, LocalRule(steps=3, lr=0.1), root(5), root(5), Correction(0.1)))
    torch.rand(3)
    again = trainer.fit(ask)
    np.testing.assert_array_equal(first.x, again.x)
    assert first.head == again.head
    assert first.count == 24
    other = trainer.fit(FitRequest("a", 0, trainer.initial(), ask.rule, root(1), root(1)))
    assert not np.array_equal(first.x, other.x)


def test_losses_are_means_of_the_first_and_last_quarter() -> None:
    result = fitted(section(optimizer="sgd"), LocalRule(steps=8, lr=0.1), batches=steps(8))
    model, seen = net(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for ((x, y),) in steps(8):
        optimizer.zero_grad()
        value = F.cross_entropy(model(x), y)
        value.backward()
        optimizer.step()
        seen.append(value.item())
    assert result.loss_first == pytest.approx(np.mean(seen[:2]), rel=1e-5)
    assert result.loss_last == pytest.approx(np.mean(seen[-2:]), rel=1e-5)


def test_failures_have_codes_and_steps() -> None:
    with pytest.raises(TrainingError, match=r"E-NAN.*step \d"):
        fitted(section(optimizer="sgd"), LocalRule(steps=6, lr=3e38))
    bad = steps(1)
    bad[0][0][0][0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"E-NAN.*step 1\b"):
        fitted(section(), LocalRule(steps=1, lr=0.1), batches=bad)
    with pytest.raises(TrainingError, match=r"E-NAN.*update"):
        fitted(section(optimizer="sgd"), LocalRule(steps=1, lr=float("inf")))
    with pytest.raises(TrainingError, match=r"E-TRAIN.*after 6 of 9"):
        fitted(section(), LocalRule(steps=9, lr=0.1))
    trainer = TorchTrainer(net(), loss, {"a": TensorShard((torch.zeros(4, 9), torch.zeros(4).long()))}, section())
    with pytest.raises(TrainingError, match=r"E-TRAIN.*device 'a'"):
        trainer.fit(FitRequest("a", 0, trainer.initial(), LocalRule(steps=1, lr=0.1), KEY, KEY))
    empty = TorchTrainer(net(), loss, {"a": TensorShard(data(0))}, section())
    with pytest.raises(DataError, match="E-DEVICE-DATA"):
        empty.fit(FitRequest("a", 0, empty.initial(), LocalRule(steps=1, lr=0.1), KEY, KEY))
    with pytest.raises(DataError, match="E-DEVICE-DATA"):
        empty.evaluate("a", empty.initial())


def test_flat_parameters_are_views() -> None:
    model = net()
    flat = Flat(list(model.named_parameters()))
    assert [s.name for s in flat.spec.segments] == ["0.weight", "0.bias", "3.weight", "3.bias"]
    x = np.arange(flat.spec.dim, dtype=np.float32)
    x.setflags(write=False)  # as it comes from a received blob
    flat.write(x)
    assert model[3].bias.tolist() == x[-3:].tolist()
    np.testing.assert_array_equal(flat.minus(x), 0)
    model.zero_grad(set_to_none=True)
    flat.zero_grad()
    model(torch.ones(2, 5)).sum().backward()
    assert flat.g_D[-3:].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="shape"):
        flat.write(x[:-1])
    with pytest.raises(ValueError, match="twice"):
        Flat([("a", model[0].bias), ("b", model[0].bias)])


def test_evaluation_leaves_training_alone() -> None:
    x, y = data()
    shards = {"a": TensorShard((x, y), held=(x[:9], y[:9]))}
    requests = [
        FitRequest("a", r, np.zeros(66, np.float32) + 0.01, LocalRule(steps=4, lr=0.1), root(r), root(r))
        for r in (0, 1)
    ]
    quiet, busy = (TorchTrainer(net(dropout=0.5), loss, shards, section()) for _ in range(2))
    for request in requests:
        expected = quiet.fit(request).x
        measured = busy.evaluate("a", busy.initial())
        np.testing.assert_array_equal(busy.fit(request).x, expected)
        assert measured.tokens == 9
        assert measured == busy.evaluate("a", busy.initial())
    model = net()
    value = F.cross_entropy(model(x[:9]), y[:9]).item()
    assert evaluate(model, loss, [(x[:4], y[:4]), (x[4:9], y[4:9])]).nll == pytest.approx(9 * value, rel=1e-5)
    with pytest.raises(TrainingError, match="E-NAN"):
        busy.evaluate("a", busy.initial() * np.float32("inf"))


def test_row_order_passes_over_all_rows_before_repeating() -> None:
    rows = list(row_order(10, steps=5, batch=4, key=KEY))
    assert sorted(np.concatenate(rows)[:10]) == sorted(np.concatenate(rows)[10:20]) == list(range(10))
    assert all(sorted(r) == [0, 1, 2] for r in row_order(3, steps=4, batch=8, key=KEY))
    again = list(row_order(10, 5, 4, KEY))
    assert all(np.array_equal(a, b) for a, b in zip(rows, again, strict=True))


def test_unshuffled_shards_give_rows_in_order() -> None:
    x, y = data(10)
    got = list(TensorShard((x, y), shuffle=False).batches(3, section(batch=4, accumulate=2), KEY))
    assert [[len(b[0]) for b in micro] for micro in got] == [[2, 2], [2, 2], [2]]
    assert torch.equal(got[1][0][0], x[4:6])


@pytest.mark.parametrize("parts", [1, 2])
def test_terms_that_a_loss_counts_in_a_tensor_are_a_number(parts: int) -> None:
    found = []
    for one in (loss, counted):
        model = net()
        flat = Flat(list(model.named_parameters()))
        rule = LocalRule(steps=2, lr=0.1)
        done = fit(model, one, steps(2, parts=parts), flat, flat.read(), rule, section(), KEY)  # type: ignore[arg-type]
        held = evaluate(model, one, [data()])  # type: ignore[arg-type]
        figures = (*done[1:], held.nll, held.tokens)
        assert [type(x) for x in figures] == [float, float, float, int]
        found.append((done.x.tobytes(), *figures))
    assert found[0] == found[1]
