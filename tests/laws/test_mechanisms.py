"""Laws of all noise mechanisms: chosen by their words alone, priced by their noise, described on the privacy card."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.mechanisms.base import Mechanism
from edgewise.plan.mechanisms.known import MECHANISMS, mechanism_of
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.sections import DpSection
from edgewise.privacy.accountant import epsilon
from support.toy_recipe import make_recipe

SPEC = Spec.of([("a", (30, 10), "float32"), ("b", (100,), "float32")])
TRAINING = {"optimizer": "sgd", "lr": 1.0, "schedule": "constant", "local_steps": 1, "clip_grad": 0.0}
COMMON = {"metrics": "none", "stage": [], "dp.delta": 1e-5, "dp.clip_l2": 4.0, "dp.noise_multiplier": 4.0}
TURNS = {"round.sampling": "cyclic", "round.cohort": 4, "round.rounds": 4}
# A recipe for each, by its name; add a line for a new mechanism.
RECIPES: dict[str, dict[str, Any]] = {
    "central": {"privacy": "central_dp"},
    "correlated": {"privacy": "central_dp", "dp.noise": "correlated", **TURNS},
    "distributed": {"privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "trust.malicious_fraction": 0.0},
    "local": {"privacy": "local_dp"},
    "example": {"privacy": "local_dp", "dp.unit": "example", "dp.sample_rate": 0.01},
    "records": {
        "privacy": "distributed_dp",
        "merge": {"kind": "secure_sum"},
        "trust.malicious_fraction": 0.0,
        "dp.unit": "example",
        "dp.records": 10,
        **{f"training.{key}": value for key, value in TRAINING.items()},
    },
}
OTHER = {
    "adaptive_clip": True,
    "tensor_l2": 0.2,
    "bits": 20,
    "buffers": 2,
    "sample_rate": 0.1,
    "records": 20,
    "clip_l2": 2.0,
}
every = pytest.mark.parametrize("mechanism", MECHANISMS, ids=lambda mechanism: mechanism.name)


def plan(mechanism: Mechanism, **more: Any) -> Plan:
    """Compile the plan of a mechanism. ``more`` holds keys of [dp]."""
    changes = {f"dp.{key}": value for key, value in more.items()}
    return compile(make_recipe({**COMMON, **RECIPES[mechanism.name], **changes}), SPEC, 8, BUILT_IN)


@every
def test_its_words_choose_it_and_no_other(mechanism: Mechanism) -> None:
    it = plan(mechanism)
    assert mechanism_of(it.recipe.privacy, it.recipe.dp) is mechanism
    assert it.promise.who_noises is mechanism.who
    assert it.promise.unit == it.recipe.dp.unit


@pytest.mark.quick(sample=3)
@every
def test_more_noise_costs_less(mechanism: Mechanism) -> None:
    spent = []
    for z in (4.0, 8.0, 16.0):
        spend = plan(mechanism, noise_multiplier=z).spend
        assert spend is not None
        spent.append(epsilon(dict.fromkeys(spend.events, 1), 1e-5))
    assert all(less < more for more, less in pairwise(spent))


@every
def test_the_noise_grows_with_its_multiplier(mechanism: Mechanism) -> None:
    """Noise is in the sum or in each contribution. Noise in the steps of training is no part of the pipeline."""
    stds = []
    for z in (4.0, 8.0):
        pipe = plan(mechanism, noise_multiplier=z).at(0)
        stds.append(pipe.total.noise_std or pipe.encoded.noise.std)
    expected = 0.0 if mechanism.name == "example" else 2.0 * stds[0]
    assert stds[1] == pytest.approx(expected, rel=0.02)


@every
def test_the_accountant_and_the_fold_have_the_same_neighbours(mechanism: Mechanism) -> None:
    it = plan(mechanism)
    assert it.spend is not None
    assert it.at(0).spaces[0].adjacency == mechanism.adjacency(it.sampling.kind)
    if mechanism.name != "example":  # whose neighbours differ in one block, and the fold is of devices
        assert {event.adjacency for event in it.spend.events} == {mechanism.adjacency(it.sampling.kind)}


@every
def test_it_says_who_adds_how_much_to_what(mechanism: Mechanism) -> None:
    it = plan(mechanism)
    assert it.spend is not None
    card = it.spend.card
    assert mechanism.summary in it.claims
    assert card.summary == mechanism.summary
    assert card.noise.startswith(("the server, ", "each device, ", "each device in each step, "))
    assert any(character.isdigit() for character in card.noise)
    assert (card.against_server is None) == mechanism.expected, "who adds the noise has seen the sum without it"


@every
def test_it_reads_the_keys_that_it_names_and_others_are_refused(mechanism: Mechanism) -> None:
    assert set(mechanism.keys) <= set(DpSection.model_fields)
    assert set(OTHER) == {key for one in MECHANISMS for key in one.keys}, "add a value for a new key"
    for key, value in OTHER.items():
        if key in mechanism.keys:
            plan(mechanism, **{key: value}, noise_multiplier=0.3 if key == "adaptive_clip" else 4.0)
            continue
        with pytest.raises(EdgewiseError, match=f"dp.{key}") as caught:
            plan(mechanism, **{key: value})
        assert caught.value.code == "E-COMBO"


def test_every_mechanism_is_under_these_laws() -> None:
    assert set(RECIPES) == {mechanism.name for mechanism in MECHANISMS}
    assert len(RECIPES) == len(MECHANISMS)
