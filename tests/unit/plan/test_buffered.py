"""Asynchronous rounds in a recipe: what they go with, what is refused with a reason, and what epsilon counts."""

from __future__ import annotations

import pytest

from edgewise.core.errors import CompositionError, RecipeError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile as compile_plan
from edgewise.plan.recipe import recipe
from edgewise.plan.sampling import Buffer

SPEC = Spec.of([("w", (64,), "float32")])
PLAIN = {
    "privacy": "none",
    "data": {"partition": "iid", "devices": 40},
    "round": {"rounds": 12, "sampling": "buffered", "cohort": 4},
    "buffer": {"concurrency": 12},
}
CENTRAL = {
    "privacy": "central_dp",
    "metrics": "none",
    "stage": [],
    "dp": {"noise_multiplier": 1.0, "delta": 1e-4, "clip_l2": 1.0},
}


def compiled(**tables):
    return compile_plan(recipe.from_plain({**PLAIN, **tables}), SPEC, 40, BUILT_IN)


def test_the_weight_falls_with_staleness_from_one():
    rule = Buffer(concurrency=12, max_staleness=10, damping=0.5, rest=1)
    assert [rule.weight(s) for s in (0, 3, 8)] == pytest.approx([1.0, 0.5, 1 / 3])
    assert Buffer(12, 10, 0.0, 1).weight(9) == 1.0
    assert rule.versions == 11


def test_a_round_closes_at_its_cohort_and_a_sum_has_no_more():
    plan = compiled()
    assert (plan.sampling.goal, plan.sampling.minimum, plan.sampling.buffer.concurrency) == (4, 2, 12)
    assert plan.at(0).spaces[0].quorum.n_max == 4


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"privacy": "hidden"}, "one session"),
        ({"merge": {"kind": "median"}}, "start from one model"),
        ({"downlink": [{"kind": "quantize", "bits": 4}]}, "a delta leads to the newest model"),
        ({"eval": {"on_devices": True}}, "several models"),
        ({"engine": {"batch_devices": 4}}, "start from one model"),
        ({"prune": {"to": 0.5}}, "between rounds"),
        ({"trust": {"cohorts": "verified"}}, "who has answered"),
        ({**CENTRAL, "dp": {**CENTRAL["dp"], "adaptive_clip": True}}, "the clips of several"),
        ({"strategy": {"kind": "scaffold"}, "training": {"optimizer": "sgd"}}, "drift from one model"),
        ({"stage": [{"kind": "weigh"}, {"kind": "segments", "cycle": 1}, {"kind": "sketch", "ratio": 4.0}]}, "half"),
        ({"stage": [{"kind": "feedback", "form": "ef21"}, {"kind": "top_k", "fraction": 0.1}]}, "half"),
        ({"strategy": {"kind": "moon"}}, "drift from one model"),
        ({"stage": [{"kind": "feedback"}, {"kind": "shared_top_k", "fraction": 0.2}]}, "one release"),
        ({"buffer": {"concurrency": 3}}, "cannot fill"),
        ({"buffer": {}}, "needs buffer.concurrency"),
        ({"round": {**PLAIN["round"], "overselect": 2.0}}, "is not read"),
        ({"round": {"rounds": 12}}, 'is for round.sampling = "buffered"'),
    ],
)  # fmt: skip
def test_what_does_not_go_with_them_is_refused_with_its_reason(tables, reason):
    with pytest.raises(RecipeError) as refused:
        compiled(**tables)
    assert refused.value.code == "E-COMBO"
    assert reason in str(refused.value)


def test_layers_that_take_turns_are_refused():
    two = Spec.of([("w", (64,), "float32"), ("v", (8,), "float32")])
    asked = recipe.from_plain({**PLAIN, "stage": [{"kind": "segments", "cycle": 2}]})
    with pytest.raises(RecipeError, match="of several parts") as refused:
        compile_plan(asked, two, 40, BUILT_IN)
    assert refused.value.code == "E-COMBO"


def test_a_population_too_small_for_resting_devices_is_refused():
    with pytest.raises(RecipeError, match="need 48 devices") as refused:
        compiled(buffer={"concurrency": 12, "rest": 10})
    assert refused.value.code == "E-QUORUM"


@pytest.mark.parametrize(("rest", "each"), [(1, 12), (4, 3), (5, 3)])
def test_epsilon_counts_the_rounds_that_rest_leaves_a_device(rest, each):
    spend = compiled(**CENTRAL, buffer={"concurrency": 12, "rest": rest}).spend
    assert spend.rounds_each == each
    assert spend.events[0].sampling == "every"  # nothing is amplified
    assert spend.divisor == 4.0


def test_rest_lowers_epsilon():
    often, seldom = (compiled(**CENTRAL, buffer={"concurrency": 12, "rest": rest}).spend for rest in (1, 4))
    assert seldom.budget.epsilon < often.budget.epsilon


def test_correlated_noise_needs_devices_that_rest():
    noise = {**CENTRAL, "dp": {**CENTRAL["dp"], "noise": "correlated"}}
    with pytest.raises(CompositionError, match=r"buffer\.rest") as refused:
        compiled(**noise)
    assert refused.value.code == "E-MF-GAP"
    event = compiled(**noise, buffer={"concurrency": 12, "rest": 4}).spend.events[0]
    assert (event.kind, event.takes) == ("matrix", 3)


def test_amplification_is_not_claimed():
    with pytest.raises(CompositionError) as refused:
        compiled(**{**CENTRAL, "dp": {**CENTRAL["dp"], "amplification": "poisson"}})
    assert refused.value.code == "E-AMP-VISIBLE"


def test_rest_is_the_gap_that_devices_and_the_ledger_count():
    plan = compiled(**{**CENTRAL, "privacy": "local_dp"}, buffer={"concurrency": 12, "rest": 4})
    assert plan.sampling.groups == 4


def test_recipes_without_the_section_keep_their_identity():
    plain = recipe.from_plain({"privacy": "none"})
    assert "buffer" not in plain.resolved()


def test_a_server_takes_them_and_its_devices_get_the_rule() -> None:
    from edgewise.apps.server.submission import served_recipe

    served = served_recipe(recipe.from_plain(PLAIN), None, SPEC, measured=False)
    plan = compile_plan(served, SPEC, 40, BUILT_IN)
    assert plan.sampling.buffer == compiled().sampling.buffer
    assert plan.facts.max_staleness == 10
    assert compile_plan(recipe.from_plain({"privacy": "none"}), SPEC, 40, BUILT_IN).facts.max_staleness is None
