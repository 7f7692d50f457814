"""Poisson cohorts under central noise: every round is released, because abandoned ones would count the devices."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest
import toy
from played import play
from scipy.stats import binom, norm
from toy_recipe import make_recipe

from edgewise.core import events
from edgewise.core.errors import EdgewiseError, RecipeError
from edgewise.core.keys import root
from edgewise.engine import sampling
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.privacy import accountant
from edgewise.privacy.spend import poisson

CENTRAL = {
    "privacy": "central_dp",
    "merge": {"kind": "sum"},
    "stage": [],
    "dp.epsilon": 8.0,
    "dp.delta": 1e-5,
    "dp.clip_l2": 4.0,
    "round.sampling": "poisson",
    "round.cohort": 1,
    "round.rounds": 12,
}


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"dp.adaptive_clip": True, "round.cohort": 3, "dp.epsilon": 200.0, "simulation.dropout": 0.7},
        {"stage": [{"kind": "clip", "l2": 4.0}, {"kind": "quantize", "bits": 8}]},
        {"stage": [{"kind": "random_k", "fraction": 0.5}]},
        {"stage": [{"kind": "shared_top_k", "fraction": 0.5}]},
        {"downlink": [{"kind": "quantize", "bits": 8}]},
    ],
    ids=str,
)
def test_a_round_with_nobody_is_released_too(tmp_path, more):
    _, told, _ = play(tmp_path, {**CENTRAL, **more})
    done = [e for e in told if isinstance(e, events.RoundFinished)]
    assert [e.met for e in done] == [True] * 12
    assert {0, 1} <= {e.accepted for e in done}, "some had nobody, some one or more"
    assert all(e.update_l2 > 0 for e in done)
    assert len({e.model for e in done}) == 12
    assert done[-1].epsilon == pytest.approx(more.get("dp.epsilon", 8.0), rel=5e-3)


@pytest.mark.slow
def test_not_even_an_outage_ends_the_run(tmp_path):
    """It would be an outcome that one device there or not decides."""
    _, told, _ = play(tmp_path, {**CENTRAL, "round.cohort": 3, "simulation.dropout": 0.97})
    done = [e for e in told if isinstance(e, events.RoundFinished)]
    assert len(done) == 12
    assert sum(e.accepted for e in done) < 6
    assert all(e.met and e.update_l2 > 0 for e in done)


@pytest.mark.parametrize(
    "change",
    [
        {"round.minimum": 0.5},
        {"round.minimum": 0.0, "round.sampling": "cyclic"},
        {"round.minimum": 0.0, "privacy": "local_dp"},
    ],
)
def test_only_these_rounds_have_no_minimum(tmp_path, change):
    with pytest.raises(RecipeError, match=r"round\.minimum") as caught:
        play(tmp_path, {**CENTRAL, **change})
    assert caught.value.code == "E-COMBO"


def test_a_hidden_sum_cannot_be_opened_of_nobody(tmp_path):
    with pytest.raises(EdgewiseError, match="every round") as caught:
        play(tmp_path, {**CENTRAL, "merge": {"kind": "secure_sum"}})
    assert caught.value.code == "E-COMBO"


def delta(n: int, rate: float, z: float, minimum: int, epsilon: float) -> float:
    """The larger delta of one round, with one of n devices there or not, by integration.

    The others all send the clip times u, the device -u; a round of fewer than ``minimum`` is one outcome by itself.
    """
    others = np.arange(n)
    chance = binom.pmf(others, n - 1, rate)
    y = np.linspace(-8 * z - 2, n * rate * 4 + 8 * z + 20, 20_001)
    step = y[1] - y[0]

    def density(weight, center):
        seen = weight > 1e-16
        return weight[seen] @ norm.pdf(y[None, :], center[seen][:, None], z)

    alone, joined = others >= minimum, others + 1 >= minimum
    without = density(chance * alone, others)
    there = (1 - rate) * without + rate * density(chance * joined, others - 1)
    none = chance[~alone].sum()
    none_there = (1 - rate) * none + rate * chance[~joined].sum()
    pairs = ((there, none_there, without, none), (without, none, there, none_there))
    return max(
        float(np.clip(p - exp(epsilon) * q, 0, None).sum() * step + max(0.0, a - exp(epsilon) * b))
        for p, a, q, b in pairs
    )


@pytest.mark.slow
@pytest.mark.parametrize(("n", "cohort"), [(100, 10), (200, 10)])
def test_a_minimum_would_break_the_claim(n, cohort):
    """Calibrated to epsilon 1 at 1e-5: the real round keeps it; with half of the cohort as minimum it does not."""
    rate = cohort / n
    z = accountant.calibrate(lambda z: {poisson(z, rate): 1}, 1.0, 1e-5)
    assert delta(n, rate, z, 0, 1.0) <= 1e-5
    assert delta(n, rate, z, cohort // 2, 1.0) > 5e-5


@pytest.mark.long(sample=0)
@pytest.mark.slow
def test_cohorts_are_drawn_at_the_rate_that_is_accounted():
    recipe = make_recipe({**CENTRAL, "round.cohort": 30, "data.devices": 200})
    catalogue = with_extensions(["toy"])
    plan = compile(recipe, toy.ToyTrainer(recipe).spec, 200, catalogue)
    [event] = plan.spend.events
    assert event.sampling == "poisson"
    devices = [f"d{i:05d}" for i in range(200)]
    drawn = np.array([len(sampling.draw(plan.sampling, devices, root(5), r)) for r in range(400)])
    spread = (200 * event.rate * (1 - event.rate)) ** 0.5
    assert drawn.mean() == pytest.approx(200 * event.rate, abs=4 * spread / 400**0.5)
    assert drawn.std() == pytest.approx(spread, rel=0.2)
