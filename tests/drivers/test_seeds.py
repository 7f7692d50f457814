"""Two runs with one seed share batches, cohorts that anyone may know and rounding, but no noise and no secret."""

from __future__ import annotations

import pytest
import toy
from invited import invited
from played import play
from toy_recipe import make_recipe

from edgewise.core import events
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.keys import simulated_root, simulated_sampling, simulated_secrets, simulated_trust
from edgewise.engine.sampling import draw
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.privacy.card import ADD_UP, card_assumptions

DP = {"stage": [], "metrics": "none", "dp.epsilon": 20.0, "dp.delta": 1e-5, "dp.clip_l2": 4.0, "round.rounds": 2}
GRID = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
NOISED = {
    "central_dp": {**DP, "privacy": "central_dp", "merge": {"kind": "sum"}},
    "distributed_dp": {**DP, "privacy": "distributed_dp", "merge": {"kind": "secure_sum"}, "round.minimum": 0.75},
    "local_dp": {**DP, "privacy": "local_dp", "merge": {"kind": "sum"}},
    "no epsilon": {"stage": [{"kind": "clip", "l2": 4.0}], "post": [{"kind": "noise", "z": 1.0}], "round.rounds": 2},
}
EXAMPLE = {**DP, "privacy": "local_dp", "dp.unit": "example", "dp.sample_rate": 0.1, "dp.epsilon": 1.0}
PLAIN = {
    "visible": {"round.rounds": 2},
    "hidden": {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": GRID, "round.rounds": 2},
    "poisson": {"round.sampling": "poisson", "round.cohort": 4, "round.minimum": 0.25, "round.rounds": 2},
    "grouped": {
        "privacy": "hidden", "merge": {"kind": "grouped", "groups": 5, "byzantine": 2}, "stage": GRID,
        "round.rounds": 2, "round.minimum": 1.0, "data.devices": 20, "trust.malicious_fraction": 0.0,
    },
}  # fmt: skip
POISSON = {**NOISED["central_dp"], "dp.epsilon": 2.0, "round.sampling": "poisson", "round.cohort": 4}


def last(out, recipe):
    models, told, _ = play(out, recipe)
    return models[max(models)], {(e.round, e.device) for e in told if isinstance(e, events.Accepted)}


@pytest.mark.long(sample=4)
@pytest.mark.slow
@pytest.mark.parametrize("word", NOISED)
@pytest.mark.parametrize("other", [{"name": "other"}, {"simulation.link_mbit": 9.0}], ids=str)
def test_runs_that_differ_share_no_noise(tmp_path, word, other):
    """These changes move no update, so whatever differs between the models is noise."""
    one, again = (last(tmp_path / out, NOISED[word]) for out in "ab")
    two = last(tmp_path / "c", {**NOISED[word], **other})
    assert one == again
    assert one[1] == two[1]
    assert one[0] != two[0]


@pytest.mark.slow
def test_one_recipe_over_other_data_has_other_noise(tmp_path, monkeypatch):
    one, _ = last(tmp_path / "a", NOISED["central_dp"])
    monkeypatch.setattr(toy.ToyTrainer, "describe", lambda self: {"model": "toy", "fingerprint": "one text more"})
    two, _ = last(tmp_path / "b", NOISED["central_dp"])
    assert one != two


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_without_noise_runs_of_one_seed_are_alike(tmp_path, name):
    one, two = last(tmp_path / "a", PLAIN[name]), last(tmp_path / "b", {**PLAIN[name], "name": "other"})
    assert one == two


def plan(overrides, population=8):
    return compile(make_recipe(overrides), Spec.of([("w", (100,), "float32")]), population, BUILT_IN)


@pytest.mark.slow
@pytest.mark.parametrize("word", [*NOISED, "example"])
def test_every_secret_of_a_device_is_the_runs_own(word):
    """And none is one that the recipe's seed alone leads to, which ``FitRequest.key`` is."""
    recipe = NOISED.get(word, EXAMPLE)
    plans = [plan(recipe), plan({**recipe, "name": "other"}), plan(recipe, 9)]
    secrets = set()
    for each in plans:
        root, nonce = simulated_root(each, "", {}), invited(each).invite.nonce
        mine = simulated_secrets(each, root, "d", 0, nonce)
        secrets |= {mine.training, mine.encoding, mine.session, simulated_trust(root).identity("d")}
        assert each.batch_key("d", 0) not in secrets
    assert len(secrets) == 4 * len(plans)


@pytest.mark.slow
def test_cohorts_that_noise_counts_on_are_the_runs_own():
    def cohorts(overrides):
        one = plan({**overrides, "data.devices": 40}, 40)
        key = simulated_sampling(one, simulated_root(one, "", {}))
        return [draw(one.sampling, [str(i) for i in range(40)], key, r) for r in range(4)]

    assert cohorts(POISSON) == cohorts(POISSON)
    assert cohorts(POISSON) != cohorts({**POISSON, "name": "other"})
    fixed = {**NOISED["central_dp"], "round.sampling": "fixed", "round.cohort": 4}
    assert cohorts(fixed) == cohorts({**fixed, "name": "other"})


@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp"])
def test_a_plan_says_what_the_seed_leads_to_and_that_epsilons_add_up(word):
    one = plan(NOISED[word])
    said = "; ".join(one.claims)
    assert "all noise follows from the recipe, its seed and the data" in said
    assert one.spend is not None
    assert ADD_UP in said
    assert ("other runs", ADD_UP) in card_assumptions(one.spend.card.to_plain())
