"""Devices of unequal depth: the step is the mean of each block over the devices that trained it."""

from __future__ import annotations

import numpy as np
import pytest
import toy
from played import play
from toy_recipe import make_recipe

from edgewise.core.blocks import from_last
from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import root
from edgewise.core.stage import Aggregate
from edgewise.core.training import FitRequest
from edgewise.core.vector import Spec
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain
from edgewise.strategies.client import LocalWork
from edgewise.strategies.depths import of_depths, trained
from edgewise.strategies.fedopt import fedavg

SPEC = Spec.of([(f"layers.{i}.w", (4,), "float32") for i in range(4)] + [("norm", (2,), "float32")])
NUMBERS = np.repeat([4, 3, 2, 1, 0], [4, 4, 4, 4, 2])
SHARES = {"1": 0.5, "3": 0.25, "4": 0.25}
FINE = [
    {"kind": "weigh", "cap": 160}, {"kind": "clip", "l2": 32.0}, {"kind": "clamp", "linf": 4.0},
    {"kind": "quantize", "bits": 16, "grid": "shared"}, {"kind": "wrap"},
]  # fmt: skip
ONE_ROUND = {
    "trainable.last_blocks": 4, "trainable.block_shares": SHARES, "strategy": {"kind": "fedavg"}, "round.rounds": 1,
    "round.minimum": 1.0, "data.devices": 24, "eval.every": 0, "compare.local_only": False,
    "compare.centralised": False,
}  # fmt: skip
HIDDEN = {"privacy": "hidden", "stage": FINE, "trust.malicious_fraction": 0.0}
WAYS = {
    "visible": {"stage": FINE[:1]},
    "by memory": {"stage": FINE[:1], "trainable.blocks_by": "memory"},
    "masks": {**HIDDEN, "merge": {"kind": "secure_sum"}},
    "two servers": {**HIDDEN, "merge": {"kind": "shared_sum"}, "trainable.blocks_by": "memory"},
}


@pytest.mark.parametrize(
    "way", ["visible", "by memory", *(pytest.param(w, marks=pytest.mark.slow) for w in ("masks", "two servers"))]
)
def test_a_round_is_the_mean_of_each_block_over_those_that_trained_it(way, tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_BLOCKS", "4")
    asked = {**ONE_ROUND, **WAYS[way]}
    recipe = make_recipe(asked)
    trainer = toy.ToyTrainer(recipe)
    plan = compile(recipe, trainer.spec, 24, BUILT_IN)
    number = np.repeat(from_last([s.name for s in trainer.spec.segments]), [s.size for s in trainer.spec.segments])
    sums, weights, depths = np.zeros(50), np.zeros(50), set()
    for device in trainer.devices():
        key, start = plan.batch_key(device, 0), trainer.initial()
        rule = plan.device_rule(0, device)
        update = trainer.fit(FitRequest(device, 0, start, rule, key, root(1), choices=plan.choices))
        depth = plan.work(0, 4, device, update.choice).blocks
        assert not update.x[number > depth].any()  # These blocks did not even train.
        weight = min(update.count, 160) / 160
        sums += weight * update.x
        weights += weight * (number <= depth)
        depths.add(depth)
    assert depths == {1, 3, 4}
    play(tmp_path, asked)
    with RunStore(tmp_path) as store:
        found = store.load().state.params
    np.testing.assert_allclose(
        found, sums / weights, atol=2e-6 if "stage" not in asked or len(asked["stage"]) == 1 else 2e-3
    )


def test_blocks_that_nobody_trained_do_not_move():
    strategy = of_depths(fedavg(), SPEC, (1, 3, 4))
    mean = np.where(NUMBERS <= 3, np.float32(0.5), np.float32(0.0))
    after = strategy.apply(
        strategy.init(np.zeros(18, np.float32)), Aggregate(mean, {"blocks_3": 0.25, "blocks_4": 0.0}, 4, 4.0)
    )
    np.testing.assert_allclose(after.params, np.select([NUMBERS <= 1, NUMBERS <= 3], [0.5, 2.0], 0.0))


def test_a_device_sends_its_blocks_and_its_scalars():
    client = of_depths(fedavg(), SPEC, (1, 3, 4)).client
    done = client.finished(np.ones(18, np.float32), {}, {}, LocalWork(1, 1, 0.1, 0.1, 0.0, blocks=3))
    np.testing.assert_array_equal(done.x, NUMBERS <= 3)
    assert done.head == {"blocks_3": 1.0, "blocks_4": 0.0}
    assert trained(SPEC, 1) == ("layers.3.w", "norm")


def test_with_noise_denominators_are_the_public_shares():
    dp = {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}
    section = {"kind": "full", "last_blocks": 4, "block_shares": SHARES, "blocks_by": "memory"}
    plan = compile(from_plain({"privacy": "central_dp", "dp": dp, "trainable": section}), SPEC, 100, BUILT_IN)
    assert plan.strategy.client.head == ()  # A scalar of a device would be outside the noise.
    after = plan.strategy.apply(
        plan.strategy.init(np.zeros(18, np.float32)), Aggregate(np.ones(18, np.float32), {}, 4, 4.0)
    )
    np.testing.assert_allclose(after.params, np.select([NUMBERS <= 1, NUMBERS <= 3], [1.0, 2.0], 4.0))
    assert any("not as block_shares say" in sentence for sentence in plan.claims)


def test_a_recipe_without_the_keys_is_the_same_run_as_before():
    assert (
        not {"last_blocks", "block_shares", "blocks_by"} & from_plain({"privacy": "none"}).trainable.resolved().keys()
    )


FEW = {"last_blocks": 4, "block_shares": {"2": 0.95, "4": 0.05}}


@pytest.mark.parametrize(
    ("more", "section", "code", "words"),
    [
        ({}, {"last_blocks": 4, "block_shares": {"2": 0.5, "4": 0.4}}, "E-VALUE", "0.9 together"),
        ({}, {"last_blocks": 4, "block_shares": {"2": 0.5, "3": 0.5}}, "E-VALUE", "names 2, 3 blocks"),
        ({}, {"last_blocks": 4, "block_shares": {"two": 1.0}}, "E-VALUE", "is no number of blocks"),
        ({}, {"blocks_by": "memory"}, "E-COMBO", "without trainable.block_shares"),
        ({}, {"kind": "layers", "layers": ["*"], "last_blocks": 2}, "E-COMBO", "both say what trains"),
        ({}, {**FEW, "kind": "lora", "rule": "rolora"}, "E-COMBO", "columns or rounds"),
        ({}, {"last_blocks": 3, "block_shares": {"1": 0.5, "3": 0.5}}, "E-TARGETS", "the trained parameters have 4"),
        ({"stage": [{"kind": "segments", "cycle": 2}]}, FEW, "E-COMBO", "the stage segments"),
        ({"personal": {"method": "fine_tune"}}, FEW, "E-COMBO", "trains all blocks"),
        ({"split": {"cut": 1}}, {"last_blocks": 1}, "E-COMBO", "trains its first blocks"),
        ({"privacy": "hidden"}, FEW, "E-NMIN", "less than two honest devices"),
        ({"strategy": {"kind": "scaffold"}, "training": {"optimizer": "sgd"}}, FEW, "E-COMBO", "unequal depth"),
    ],
)
def test_depths_that_cannot_be(more, section, code, words):
    with pytest.raises(EdgewiseError) as caught:
        compile(from_plain({"privacy": "none", **more, "trainable": section}), SPEC, 20, BUILT_IN)
    assert caught.value.code == code
    assert words in caught.value.what
