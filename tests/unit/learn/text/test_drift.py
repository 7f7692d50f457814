"""Online EWC: importance and penalty by hand, and what a device keeps over windows, which does not grow."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_model
import torch
from torch import Tensor, nn

from edgewise.core.frame import LocalRule
from edgewise.core.keys import derive, root
from edgewise.core.training import POOLED, FitRequest, Update
from edgewise.learn.evaluate import evaluate
from edgewise.learn.flat import Flat
from edgewise.learn.text.drift import DriftWork, PageHinkley, importance
from edgewise.learn.text.trainer import TextTrainer, make
from edgewise.learn.train import Penalty, fit
from edgewise.plan.recipe.drift import DriftSection
from edgewise.plan.recipe.recipe import from_plain
from edgewise.plan.recipe.sections import TrainingSection

WINDOWS = 12


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0]))


def _product(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    return (model.w * x).sum(), 1.0  # type: ignore[operator]


def test_importance_is_the_mean_of_squared_gradients() -> None:
    model = Pair()
    flat = Flat(list(model.named_parameters()))
    records = [torch.tensor([1.0, 3.0]), torch.tensor([-2.0, 0.0])]
    np.testing.assert_allclose(importance(model, _product, flat, records), [(1 + 4) / 2, 9 / 2])
    assert not flat.g_D.any()
    np.testing.assert_array_equal(importance(model, _product, flat, []), [0.0, 0.0])


def test_the_penalty_is_in_each_step() -> None:
    model = Pair()
    flat = Flat(list(model.named_parameters()))
    training = TrainingSection(optimizer="sgd", lr=0.1, batch=1, clip_grad=0.0)
    params, x = flat.read(), torch.tensor([1.0, 3.0])
    F, anchor, w = np.float32([2.0, 0.5]), np.float32([0.0, 4.0]), params.copy()
    got = fit(
        model, _product, [[x]] * 3, flat, params, LocalRule(steps=3, lr=0.1), training, root(0),
        penalty=Penalty(F, anchor),
    )  # fmt: skip
    for _ in range(3):
        w -= np.float32(0.1) * (x.numpy() + F * (w - anchor))
    np.testing.assert_allclose(params + got.x, w, rtol=1e-6)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    rows = [
        {"who": "ann", "at": window, "text": f"in {window} she saw {i} of them " * 6}
        for window in range(WINDOWS)
        for i in range(4)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def trainer(place: Path, **drift: object) -> TextTrainer:
    plain = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "data": {
            "source": "jsonl", "path": "t.jsonl", "owner": "who", "time": "at", "sequence_len": 16, "holdout": 0.2,
            "stream": True, "window": 1.0, "window_start": "0",
        },
        "round": {"rounds": 10},
        "training": {"batch": 4, "lr": 0.01, "local_steps": 3},
        "drift": drift,
    }  # fmt: skip
    return make(from_plain(plain), place, place / "cache")


def request(t: TextTrainer, round: int, before: Update | None = None) -> FitRequest:
    own = root(round)
    kept = {} if before is None else before.personal
    return FitRequest("ann", round, t.initial(), LocalRule(steps=3, lr=0.01), own, derive(own, "own"), personal=kept)


@pytest.mark.slow
def test_a_device_measures_its_last_window_when_it_gets_to_the_next_one(place: Path) -> None:
    t = trainer(place, penalty=10.0, penalty_keep=0.5)
    first = t.fit(request(t, 0))
    assert list(first.personal) == ["window"]  # Nothing was before.
    np.testing.assert_array_equal(first.x, trainer(place).fit(request(t, 0)).x)
    second = t.fit(request(t, 1, first))
    np.testing.assert_array_equal(second.personal["anchor"], t.initial())
    F = second.personal["importance"]
    t.flat.write(t.initial())
    text = t.text("ann").window(0)  # type: ignore[attr-defined]
    expected = importance(t.model, t.loss, t.flat, text.records(np.arange(text.size)))
    np.testing.assert_allclose(F, expected, rtol=1e-4, atol=1e-9)
    again = t.fit(request(t, 1, second))  # The same window: nothing is measured anew.
    assert again.personal["importance"] is F
    third = t.fit(request(t, 2, second)).personal["importance"]
    text = t.text("ann").window(1)  # type: ignore[attr-defined]
    t.flat.write(t.initial())
    expected = importance(t.model, t.loss, t.flat, text.records(np.arange(text.size))) + 0.5 * F
    np.testing.assert_allclose(third, expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_array_equal(t.fit(request(t, 0, second)).personal["importance"], F)  # A round of before.


@pytest.mark.slow
def test_a_penalty_holds_the_weights_that_mattered(place: Path) -> None:
    moved, F = [], None
    for penalty in (1e-6, 1e9):
        t = trainer(place, penalty=penalty)
        before = t.fit(request(t, 0))
        update = t.fit(request(t, 1, before))
        F = update.personal["importance"]
        moved.append(float((F * update.x**2).sum()))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.slow
def test_what_a_device_keeps_does_not_grow_with_its_windows(place: Path) -> None:
    t = trainer(place, penalty=10.0)
    update, sizes = t.fit(request(t, 0)), []
    for round in range(1, WINDOWS):
        update = t.fit(request(t, round, update))
        sizes.append(sum(x.nbytes for x in update.personal.values()))
    assert set(sizes) == {8 * t.spec.dim + 8}


def test_the_comparison_of_all_text_has_no_penalty(place: Path) -> None:
    t = trainer(place, penalty=10.0)
    update = t.fit(replace(request(t, 1), device=POOLED))
    assert not update.personal


def test_page_hinkley_by_hand() -> None:
    section = DriftSection(alarm=True, tolerance=0.1, threshold=0.5, alarm_rounds=2)
    watch = PageHinkley()
    for round, x in enumerate([0.0, 0.2, -0.2, 0.0]):  # Noise within the tolerance raises nothing.
        watch = watch.after(x, round, section)
    assert watch.count == 4
    assert watch.until == 0
    assert watch.mean == pytest.approx(0.0)
    assert watch.m == pytest.approx((0 - 0 - 0.1) + (0.2 - 0.1 - 0.1) + (-0.2 - 0.0 - 0.1) + (0 - 0 - 0.1))
    raised = watch.after(1.0, 4, section)  # m rises by 1 - 0.2 - 0.1.
    assert raised == PageHinkley(until=6.0)
    falls = PageHinkley()
    for round in range(50):
        falls = falls.after(-0.1 * round, round, section)
    assert falls.until == 0


@pytest.mark.slow
def test_a_device_raises_its_alarm_and_stays_in_it(place: Path) -> None:
    found, update = [], None
    t = trainer(place, alarm=True, tolerance=0.0, threshold=1e-9, alarm_rounds=2)
    assert t.metrics() == ["in_alarm"]
    for round in range(8):
        update = t.fit(request(t, round, update))
        found.append(update.head["in_alarm"])
        assert set(update.personal) == {"watch"}
        assert update.personal["watch"].shape == (5,)
    assert found[0] == 0.0  # Nothing is there to compare with.
    assert set(found) <= {0.0, 1.0}
    # The model never moves from that before round 0, so no text drifts away from it.
    assert not any(found)


def test_an_alarm_compares_what_training_has_helped_on_both_sides(place: Path) -> None:
    t = trainer(place, alarm=True, alarm_blocks=1000)
    asked = request(t, 3)
    learnt = t.initial() + t.fit(replace(asked, rule=LocalRule(steps=20, lr=0.01))).x
    found = DriftWork(t._drift._section)._compared(t, t.text("ann"), 3, replace(asked, params=learnt))  # type: ignore[arg-type]
    shard = t.text("ann")
    new, old = shard.window(3), [shard.window(i) for i in range(3)]  # type: ignore[attr-defined]

    def helped(parts: list[object]) -> float:
        losses = []
        for params in (learnt, t.initial()):
            t.flat.write(params)
            each = [evaluate(t.model, t.loss, part.held_out()) for part in parts]  # type: ignore[attr-defined]
            losses.append(sum(m.nll for m in each) / sum(m.tokens for m in each))
        return losses[0] - losses[1]

    assert found == pytest.approx(helped([new]) - helped(old), rel=1e-4)


@pytest.mark.slow
def test_the_penalty_and_the_alarm_keep_their_own(place: Path) -> None:
    both, one = (trainer(place, penalty=10.0, alarm=alarm) for alarm in (True, False))
    a, b = both.fit(request(both, 0)), one.fit(request(one, 0))
    a, b = both.fit(request(both, 1, a)), one.fit(request(one, 1, b))
    np.testing.assert_array_equal(a.x, b.x)
    assert set(a.personal) == {"window", "importance", "anchor", "watch"}
    assert set(b.personal) == {"window", "importance", "anchor"}
