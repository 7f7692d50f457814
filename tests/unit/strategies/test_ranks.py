"""Devices of unequal rank: the step is the mean of each column over the devices that trained it."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from played import play
from toy_recipe import make_recipe

from edgewise.core.errors import EdgewiseError
from edgewise.core.factors import columns
from edgewise.core.keys import root
from edgewise.core.stage import Aggregate
from edgewise.core.training import FitRequest
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain
from edgewise.strategies.client import LocalWork
from edgewise.strategies.fedopt import fedavg
from edgewise.strategies.ranks import of_ranks

SPEC = Spec.of([("q.lora_B.weight", (6, 4), "float32"), ("norm", (2,), "float32")])
SHARES = {"2": 0.5, "4": 0.5}
FINE = [
    {"kind": "weigh", "cap": 160}, {"kind": "clip", "l2": 32.0}, {"kind": "clamp", "linf": 4.0},
    {"kind": "quantize", "bits": 16, "grid": "shared"}, {"kind": "wrap"},
]  # fmt: skip
ONE_ROUND = {
    "trainable.kind": "lora", "trainable.rule": "ffa", "trainable.rank": 4, "trainable.rank_shares": SHARES,
    "strategy": {"kind": "fedavg"}, "round.rounds": 1, "round.minimum": 1.0, "data.devices": 20, "eval.every": 0,
    "compare.local_only": False, "compare.centralised": False, "trust.malicious_fraction": 0.0,
}  # fmt: skip
WAYS = {
    "visible": {"stage": FINE[:1]},
    "masks": {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": FINE},
    "two servers": {"privacy": "hidden", "merge": {"kind": "shared_sum"}, "stage": FINE},
}


@pytest.mark.parametrize(
    "way", ["visible", *(pytest.param(w, marks=pytest.mark.slow) for w in ("masks", "two servers"))]
)
def test_a_round_is_the_mean_of_each_column_over_those_that_trained_it(way, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_RANK", "4")
    asked = {**ONE_ROUND, **WAYS[way]}
    if way == "visible":
        asked = {k: v for k, v in asked.items() if k != "trust.malicious_fraction"}
    trainer, recipe = toy.ToyTrainer(make_recipe(asked)), make_recipe(asked)
    plan = compile(recipe, trainer.spec, 20, BUILT_IN)
    sums, weights, ranks = np.zeros(50), np.zeros(50), set()
    for device in trainer.devices():
        work = plan.work(0, 4, device)
        key, start = plan.batch_key(device, 0), trainer.initial()
        update = trainer.fit(FitRequest(device, 0, start, plan.rule(0), key, root(1), rank=work.rank))
        trained = columns(trainer.spec) < work.rank
        weight = min(update.count, 160) / 160
        sums += weight * np.where(trained, update.x, 0.0)
        weights += weight * trained
        ranks.add(work.rank)
    assert ranks == {2, 4}
    play(tmp_path, asked)
    with RunStore(tmp_path) as store:
        found = store.load().state.params
    np.testing.assert_allclose(found, sums / weights, atol=2e-6 if way == "visible" else 2e-3)


def test_columns_that_nobody_trained_do_not_move():
    strategy = of_ranks(fedavg(), SPEC, (1, 2, 4))
    state = strategy.init(np.ones(26, np.float32))
    mean = np.where(columns(SPEC) < 2, np.float32(0.5), np.float32(0.0))
    after = strategy.apply(state, Aggregate(mean, {"rank_2": 0.25, "rank_4": 0.0}, 4, 4.0))
    moved = (after.params - state.params)[:24].reshape(6, 4)
    np.testing.assert_allclose(moved, [[0.5, 2.0, 0.0, 0.0]] * 6)
    np.testing.assert_allclose(after.params[24:], 1.5)


def test_a_device_sends_its_columns_and_its_scalars():
    client = of_ranks(fedavg(), SPEC, (1, 2, 4)).client
    done = client.finished(np.ones(26, np.float32), {}, {}, LocalWork(1, 1, 0.1, 0.1, 0.0, rank=2))
    np.testing.assert_array_equal(done.x[:24].reshape(6, 4), [[1, 1, 0, 0]] * 6)
    assert done.head == {"rank_2": 1.0, "rank_4": 0.0}


def test_with_noise_denominators_are_the_public_shares():
    dp = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
    section = {"kind": "lora", "rule": "ffa", "rank": 4, "rank_shares": {"2": 0.75, "4": 0.25}}
    recipe = from_plain({"privacy": "central_dp", "dp": dp, "trainable": section})
    strategy = compile(recipe, SPEC, 100, BUILT_IN).strategy
    assert strategy.client.head == ()
    after = strategy.apply(strategy.init(np.zeros(26, np.float32)), Aggregate(np.ones(26, np.float32), {}, 4, 4.0))
    np.testing.assert_allclose(after.params[:24].reshape(6, 4), [[1, 1, 4, 4]] * 6)


def test_shares_deal_out_ranks_and_patterns_name_them():
    section = from_plain({"privacy": "none", "trainable": {**LORA, "rank_shares": {"2": 0.75, "4": 0.25}}}).trainable
    ranks = [section.rank_of(f"d{i}", root(0)) for i in range(2000)]
    assert set(ranks) == {2, 4}
    assert 0.2 < ranks.count(4) / 2000 < 0.3
    assert ranks != [section.rank_of(f"d{i}", root(1)) for i in range(2000)]
    named = from_plain({"privacy": "none", "trainable": {**LORA, "ranks": {"phone-*": 1}}}).trainable
    assert [named.rank_of(d, root(0)) for d in ("phone-7", "hub-7")] == [1, 4]
    assert named.says == "LoRA adapters of rank 1 or 4, B only (FFA-LoRA)"


LORA = {"kind": "lora", "rank": 4}


@pytest.mark.parametrize(
    ("more", "section", "code", "words"),
    [
        ({}, {"rule": "fedit", "rank_shares": SHARES}, "E-COMBO", "one A on all of them"),
        ({}, {"rank_shares": {"2": 0.5, "4": 0.4}}, "E-VALUE", "0.9 together"),
        ({}, {"rank_shares": {"2": 1.0}}, "E-VALUE", "no device trainable.rank = 4"),
        ({}, {"rank_shares": SHARES, "ranks": {"a": 2}}, "E-COMBO", "both say which device"),
        ({}, {"rank_shares": {"two": 1.0}}, "E-VALUE", "is no rank"),
        ({}, {"ranks": {"phone-*": 8}}, "E-VALUE", "trainable.rank = 4 is the largest"),
        ({"privacy": "hidden"}, {"ranks": {"phone-*": 2}}, "E-COMBO", "patterns of ids"),
        ({"privacy": "hidden"}, {"rank_shares": {"2": 0.95, "4": 0.05}}, "E-NMIN", "less than two honest devices"),
        (
            {"strategy": {"kind": "scaffold"}, "training": {"optimizer": "sgd"}},
            {"rank_shares": SHARES},
            "E-COMBO",
            "means of all",
        ),
    ],
)
def test_ranks_that_cannot_be(more, section, code, words):
    with pytest.raises(EdgewiseError) as caught:
        compile(from_plain({"privacy": "none", **more, "trainable": {**LORA, **section}}), SPEC, 20, BUILT_IN)
    assert caught.value.code == code
    assert words in caught.value.what
