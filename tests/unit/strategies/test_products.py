"""FedEx-LoRA and FLoRA: the weights that devices compute with step by the mean of theirs."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import Turn, root
from edgewise.core.memory import Memory
from edgewise.core.vector import Spec, Vector, unpack
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain
from edgewise.strategies.base import State

SPEC = Spec.of(
    [
        ("l.0.q.lora_A.weight", (2, 6), "float32"), ("l.0.q.lora_B.weight", (5, 2), "float32"),
        ("l.0.v.lora_A.weight", (2, 6), "float32"), ("l.0.v.lora_B.weight", (3, 2), "float32"),
        ("l.0.q.base_layer.weight", (5, 6), "float32"), ("l.0.v.base_layer.weight", (3, 6), "float32"),
    ]
)  # fmt: skip
TRAINED = np.concatenate([np.full(s.size, "base_layer" not in s.name) for s in SPEC.segments])
SCALE, COUNTS = 3.0, (10.0, 40.0, 25.0)


def plan(rule: str, **more: object) -> Plan:
    section = {"kind": "lora", "rule": rule, "rank": 2, "alpha": 2 * SCALE}
    return compile(from_plain({"privacy": "none", "trainable": section, **more}), SPEC, 3, BUILT_IN)


def effective(x: Vector) -> dict[str, np.ndarray]:
    """W_0 + s B A of each matrix."""
    t = unpack(x, SPEC)
    return {
        m: t[f"l.0.{m}.base_layer.weight"] + SCALE * t[f"l.0.{m}.lora_B.weight"] @ t[f"l.0.{m}.lora_A.weight"]
        for m in "qv"
    }


def played(p: Plan, start: Vector, updates: list[Vector]) -> State:
    """One round through the plan's own pipeline and strategy."""
    pipe, total = p.at(0), p.at(0).start_sum()
    turn = Turn(0, root(0), root(2))
    for x, count in zip(updates, COUNTS, strict=True):
        head = p.metrics.encoded(dict.fromkeys(p.metrics.names, 0.0))
        payload, _ = pipe.encode(x, head, count, pipe.init(), turn)
        total = pipe.add(total, payload, turn)
    aggregate, _ = pipe.release(total, turn, root(1), Memory())
    state = p.strategy.init(start)
    return p.strategy.apply(state, aggregate)


@pytest.mark.parametrize("rule", ["fedex", "flora"])
@pytest.mark.parametrize("stages", [[{"kind": "weigh", "cap": 100}], [], [{"kind": "weigh", "cap": 20}]])
def test_the_step_is_the_mean_of_the_devices_products(rule, stages):
    rng = np.random.default_rng(0)
    start = rng.normal(0, 0.3, SPEC.dim).astype(np.float32)
    updates = []
    for s in SPEC.segments:
        if rule == "flora" and "lora_B" in s.name:
            start[s.start : s.stop] = 0.0
    for _ in COUNTS:
        updates.append(np.where(TRAINED, rng.normal(0, 0.3, SPEC.dim), 0).astype(np.float32))
    cap = stages[0]["cap"] if stages else 0
    weights = np.array([min(c, cap) for c in COUNTS]) if stages else np.ones(3)
    wanted = {
        m: sum(w * effective(start + x)[m] for w, x in zip(weights, updates, strict=True)) / weights.sum() for m in "qv"
    }
    after = played(plan(rule, stage=stages), start, updates)
    for m, found in effective(after.params).items():
        np.testing.assert_allclose(found, wanted[m], atol=1e-5)
    fresh = unpack(after.params, SPEC)["l.0.q.lora_B.weight"]
    assert (not fresh.any()) == (rule == "flora")
    naive = effective(start + sum(w * x for w, x in zip(weights, updates, strict=True)) / weights.sum())
    assert max(np.abs(naive[m] - wanted[m]).max() for m in "qv") > 0.01, "averaging factors apart misses it"


def test_flora_begins_new_factors_every_round():
    start, nothing = np.zeros(SPEC.dim, np.float32), [np.zeros(SPEC.dim, np.float32)] * 3
    p = plan("flora")
    first = played(p, start, nothing)
    name = "l.0.q.lora_A.weight"
    assert unpack(first.params, SPEC)[name].std() > 0.1
    np.testing.assert_array_equal(first.params, played(p, start, nothing).params)


def test_codecs_after_the_products_carry_the_factors():
    rng, few_bits = np.random.default_rng(0), [{"kind": "weigh"}, {"kind": "feedback"}, {"kind": "quantize", "bits": 8}]
    updates = [np.where(TRAINED, rng.normal(0, 0.3, SPEC.dim), 0).astype(np.float32) for _ in COUNTS]
    exact, near = (
        effective(played(plan("fedex", stage=stages), np.zeros(SPEC.dim, np.float32), updates).params)
        for stages in (few_bits[:1], few_bits)
    )
    for m, wanted in exact.items():
        np.testing.assert_allclose(near[m], wanted, atol=0.03 * np.abs(wanted).max())


def test_only_factors_train_and_travel():
    p = plan("fedex")
    assert all(".lora_" in name for name in p.rule(0).segments)
    assert len(p.rule(0).segments) == 4
    assert p.at(0).encoded.dim == 2 * 6 * 2 + 5 * 2 + 3 * 2
    assert p.frozen(0) == ()


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"privacy": "hidden"}, "E-COMBO", "multiplies the factors of each device"),
        ({"privacy": "local_dp", "dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}, "E-COMBO", "hides or noises"),
        ({"codec": "adaptive"}, "E-COMBO", "no rung of codec"),
        ({"model": {"quantize": "nf4"}}, "E-COMBO", 'trainable.rule = "fedex": rounded weights'),
        ({"strategy": {"kind": "fedadam"}}, "E-COMBO", "steps otherwise"),
        ({"strategy": {"kind": "fedavg", "lr": 0.5}}, "E-COMBO", "steps otherwise"),
        ({"stage": [{"kind": "weigh"}, {"kind": "clip", "l2": 1.0}]}, "E-COMBO", "none of their products"),
        ({"stage": [{"kind": "clip", "l2": 1.0}]}, "E-COMBO", "none of their products"),
    ],
)
def test_what_does_not_go_with_products_is_refused_by_name(more, code, words):
    with pytest.raises(EdgewiseError) as caught:
        plan("fedex", **more)
    assert caught.value.code == code
    assert words in caught.value.what
