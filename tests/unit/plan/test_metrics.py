"""Metrics of devices: what a recipe declares travels within its bounds, in the sum, and under the noise of the sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import hypot, inf, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.core import keys
from edgewise.core.errors import DecodeError, EdgewiseError, TrainingError
from edgewise.core.keys import Turn
from edgewise.core.training import FitRequest, Update
from edgewise.core.vector import Spec
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.trainers import make_trainer
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import BUILT_IN, Catalogue
from edgewise.plan.compile import compile
from edgewise.plan.facts import decisive
from edgewise.plan.metrics import SHARE
from edgewise.plan.plan import Plan

SPEC = Spec.of([("w", (8,), "float32")])
OWN = [{"name": "level", "lower": -1.0, "upper": 3.0}, {"name": "share"}]
MASKS = [{"kind": "clip", "l2": 4.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
PLAIN: dict[str, Any] = {"stage": [{"kind": "weigh"}], "strategy.kind": "fedavg"}
CENTRAL: dict[str, Any] = {
    "privacy": "central_dp", "metrics": "none", "stage": [], "strategy.kind": "fedavg", "dp.noise_multiplier": 1.0,
    "dp.delta": 1e-5, "dp.clip_l2": 2.0,
}  # fmt: skip

LOCAL: dict[str, Any] = {**CENTRAL, "privacy": "local_dp", "merge": {"kind": "sum"}}
SHARES: dict[str, Any] = {**CENTRAL, "privacy": "distributed_dp", "trust.malicious_fraction": 0.0}


def plan_of(overrides: Mapping[str, Any], metric: list[dict[str, Any]] | None = None, population: int = 8) -> Plan:
    tables = {**overrides, "metric": OWN if metric is None else metric}
    return compile(make_recipe(tables), SPEC, population, BUILT_IN)


def head(plan: Plan, **own: float) -> dict[str, float]:
    return {**dict.fromkeys(plan.metrics.names, 1.0), **own}


def released(plan: Plan, heads: list[dict[str, float]], counts: list[float] | None = None) -> Mapping[str, float]:
    """The means of a round in which devices give these numbers, as the server tells them."""
    pipe, turn = plan.at(0), Turn(0, keys.root(1), keys.root(2))
    total = pipe.start_sum()
    for i, (given, count) in enumerate(zip(heads, counts or [100.0] * len(heads), strict=True)):
        x, own = np.zeros(SPEC.dim, np.float32), replace(turn, private=keys.derive(keys.root(2), "device", i))
        payload, _ = pipe.encode(x, plan.metrics.encoded(given), count, pipe.init(), own)
        total = pipe.add(total, payload, turn)
    aggregate, _ = pipe.release(total, turn, keys.root(3), pipe.start_memory())
    return plan.measured(aggregate).head


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "masks"])
def test_means_come_back_in_their_own_units_cut_to_their_bounds(hidden: bool) -> None:
    plan = plan_of({**PLAIN, "privacy": "hidden", "stage": MASKS} if hidden else PLAIN)
    given = [head(plan, level=2.0, share=0.25), head(plan, level=99.0, share=0.75), head(plan, level=-99.0, share=-1.0)]
    found = released(plan, given)
    assert found["level"] == pytest.approx((2.0 + 3.0 - 1.0) / 3)
    assert found["share"] == pytest.approx((0.25 + 0.75 + 0.0) / 3)
    assert found["loss_last"] == pytest.approx(1.0)


def test_a_mean_weighs_devices_as_their_updates_are_weighed() -> None:
    plan = plan_of(PLAIN)
    found = released(plan, [head(plan, share=1.0), head(plan, share=0.0)], counts=[300.0, 100.0])
    assert found["share"] == pytest.approx(0.75)


def test_a_value_that_no_honest_device_sends_is_refused_where_the_server_sees_it() -> None:
    plan = plan_of(PLAIN)
    pipe, turn = plan.at(0), Turn(0, keys.root(1), keys.root(2))
    payload, _ = pipe.encode(np.zeros(8, np.float32), plan.metrics.encoded(head(plan)), 1.0, pipe.init(), turn)
    beyond = payload.head.copy()
    beyond[plan.metrics.names.index("share")] *= 1.01
    with pytest.raises(DecodeError, match="outside its bounds"):
        pipe.add(pipe.start_sum(), payload.but(head=beyond), turn)
    for odd in (nan, inf):
        with pytest.raises(TrainingError, match="NaN or infinity"):
            pipe.encode(np.zeros(8, np.float32), plan.metrics.encoded(head(plan, level=odd)), 1.0, pipe.init(), turn)


@pytest.mark.parametrize(
    ("more", "clip"), [({}, 2.0), ({"dp.adaptive_clip": True}, 1.0), ({"dp.tensor_l2": 2.0}, 2.0)],
    ids=["clip", "adaptive", "tensors"],
)  # fmt: skip
def test_central_noise_covers_metrics_and_is_sized_by_them(more: dict[str, Any], clip: float) -> None:
    alone, plan = plan_of({**CENTRAL, **more}, [], 200), plan_of({**CENTRAL, **more}, population=200)
    before, after = alone.at(0).total, plan.at(0).total
    assert after.dim == before.dim + len(OWN)
    assert after.sensitivity == pytest.approx(hypot(before.sensitivity, SHARE * clip), rel=1e-6)
    assert after.noise_std == pytest.approx(after.sensitivity, rel=1e-3)
    assert alone.spend is not None
    assert plan.spend is not None
    assert plan.spend.events == alone.spend.events, "the same epsilon, for both together"
    assert plan.metric_noise("level") == pytest.approx(4 * plan.metric_noise("share"))


def test_a_noised_mean_is_one_over_the_devices_that_came() -> None:
    plan = plan_of({**CENTRAL, "dp.noise_multiplier": 0.02}, population=200)
    found = released(plan, [head(plan, share=0.5, level=2.0)] * 50)
    assert found["share"] == pytest.approx(0.5, abs=0.03)
    assert found["level"] == pytest.approx(2.0, abs=0.12)


def test_losses_and_held_out_losses_travel_under_central_noise_too() -> None:
    plan = plan_of({**CENTRAL, "metrics": "sum", "eval.on_devices": True}, [])
    assert plan.metrics.names == ("loss_first", "loss_last", "held_out", "held_share")
    assert plan.at(0).total.sensitivity == pytest.approx(2.0 * hypot(1.0, SHARE), rel=1e-6)


@pytest.mark.parametrize(
    "private",
    [
        {**CENTRAL, "privacy": "local_dp", "dp.unit": "example", "dp.sample_rate": 0.1},
        {**CENTRAL, "round.sampling": "poisson", "round.cohort": 4},
    ],
    ids=["steps", "poisson"],
)
def test_what_no_noise_covers_is_refused(private: dict[str, Any]) -> None:
    with pytest.raises(EdgewiseError) as e:
        plan_of(private)
    assert e.value.code == "E-STATS"
    assert "level" in e.value.what


@pytest.mark.parametrize("merge", ["secure_sum", "shared_sum", "sum"])
def test_noise_of_devices_covers_metrics_as_coordinates_of_the_update(merge: str) -> None:
    private = LOCAL if merge == "sum" else {**SHARES, "merge": {"kind": merge}}
    alone, plan = plan_of(private, [], 200), plan_of(private, population=200)
    assert plan.at(0).encoded.head == (), "no exact scalar leaves a device"
    assert plan.at(0).encoded.dim == SPEC.dim + len(OWN)
    assert plan.at(0).total.dim == alone.at(0).total.dim + len(OWN)
    before, after = alone.at(0).encoded.noise, plan.at(0).encoded.noise
    assert after.std == pytest.approx(before.std * hypot(1.0, SHARE), rel=0.02), "sized by both together"
    if merge == "sum":
        assert alone.spend is not None
        assert plan.spend is not None
        assert plan.spend.events == alone.spend.events
    else:
        assert after.rho == pytest.approx(before.rho, rel=0.03), "the same epsilon, for both together"
    assert plan.metric_noise("share") == pytest.approx(after.std / sqrt(200) / plan.metrics.bound, rel=1e-6)


@pytest.mark.parametrize("merge", ["secure_sum", "sum"])
def test_means_under_noise_of_devices_come_back_in_their_own_units(merge: str) -> None:
    private = LOCAL if merge == "sum" else {**SHARES, "merge": {"kind": merge}}
    plan = plan_of({**private, "dp.noise_multiplier": 0.01 if merge == "sum" else 0.05}, population=200)
    given = [head(plan, level=2.0, share=0.25), head(plan, level=99.0, share=0.75)] * 100
    found = released(plan, given)
    assert found["share"] == pytest.approx(0.5, abs=6 * plan.metric_noise("share") + 1e-3)
    assert found["level"] == pytest.approx(2.5, abs=6 * plan.metric_noise("level") + 4e-3)
    assert plan.metric_noise("level") < 0.2


def test_a_weight_beside_metrics_is_refused_where_devices_add_the_noise() -> None:
    with pytest.raises(EdgewiseError) as e:
        plan_of({**LOCAL, "stage": [{"kind": "weigh"}]})
    assert e.value.code == "E-WEIGHT"


@pytest.mark.parametrize(
    ("metric", "code", "said"),
    [
        ([{"name": "loss"}], "E-VALUE", "has a meaning already"),
        ([{"name": "held_out"}], "E-VALUE", "has a meaning already"),
        ([{"name": "a"}, {"name": "a"}], "E-VALUE", "comes twice"),
        ([{"name": "a", "lower": 1.0}], "E-VALUE", "is not below"),
        ([{"name": "A b"}], "E-VALUE", "metric"),
        ([{"nam": "a"}], "E-KEY", "name"),
    ],
)
def test_a_declaration_that_cannot_be_is_refused_by_name(metric: list[dict[str, Any]], code: str, said: str) -> None:
    with pytest.raises(EdgewiseError) as e:
        plan_of(PLAIN, metric)
    assert e.value.code == code
    assert said in str(e.value)


def test_a_recipe_without_own_metrics_is_the_run_that_it_was() -> None:
    assert "metric" not in make_recipe().resolved()
    assert decisive(make_recipe({"metric": OWN}).resolved()) != decisive(make_recipe().resolved())


class Measures(ToyTrainer):
    """Gives these numbers beside losses, and says that it measures some of them."""

    def __init__(self, given: dict[str, float], said: tuple[str, ...]) -> None:
        super().__init__(make_recipe())
        self._given, self._said = given, said

    def metrics(self) -> tuple[str, ...]:
        return self._said

    def fit(self, request: FitRequest) -> Update:
        found = super().fit(request)
        return replace(found, head={**found.head, **self._given})


def test_a_trainer_gives_what_it_says_that_it_measures(tmp_path: Path) -> None:
    recipe = make_recipe({"metric": [{"name": "share"}]})
    plan = compile(recipe, ToyTrainer(recipe).spec, 8, BUILT_IN)

    def check(given: dict[str, float], said: tuple[str, ...]) -> None:
        made = registered(Measures(given, said))
        request = FitRequest("d00000", 0, made.initial(), plan.rule(0), keys.root(1), keys.root(2))
        Devices(plan, made, None, None, None, None)._check_metrics(made.fit(request))  # type: ignore[arg-type]

    check({"share": 0.5, "unasked": 1.0}, ("share", "unasked"))
    with pytest.raises(TrainingError, match="gave no share"):
        check({}, ("share",))
    with pytest.raises(TrainingError, match=r"Measures\.metrics\(\) does not name"):
        check({"share": 0.5, "secret": 1.0}, ("share",))
    with pytest.raises(EdgewiseError, match="does not measure it") as e:
        make_trainer(recipe, tmp_path, tmp_path, Catalogue(trainer=lambda _: Measures({}, ("other",))))
    assert e.value.code == "E-COMBO"
