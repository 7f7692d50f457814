"""A whole run whose devices sum records under masks does what its plan accounts, seen in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import record_toy
from record_toy import DEVICES, RECORDS

from edgewise.apps.simulate import simulation
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN, with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.recipe import recipe

TEXT = """
privacy = "distributed_dp"
[dp]
unit = "example"
noise_multiplier = 6.0
delta = 1e-5
clip_l2 = 0.5
records = 200
[trust]
malicious_fraction = 0.0
dropout_fraction = 0.0
[round]
rounds = 2
minimum = 1.0
[strategy]
kind = "fedavg"
[compare]
centralised = false
local_only = false
"""


@pytest.mark.long(sample=0)
@pytest.mark.slow
def test_what_is_summed_is_what_is_accounted(tmp_path: Path) -> None:
    asked = recipe.parse(TEXT)
    simulation.run(asked, out=tmp_path, recipe_dir=tmp_path, extensions=["record_toy"], sinks=[], report=False)
    with RunStore(tmp_path) as store:
        x = store.blob(store.models()[2]).astype(np.float64)
    plan = compile(asked, record_toy.make(asked).spec, DEVICES, with_extensions(["record_toy"]))
    assert plan.spend is not None
    [event] = plan.spend.events
    assert (event.unit, event.kind, event.adjacency) == ("example", "zcdp", "zero_out")
    seen = -x * DEVICES * RECORDS / asked.dp.clip_l2  # in clips of one record, of all devices and both rounds
    noise, drawn = seen[RECORDS:], seen[:RECORDS]
    assert noise.std() == pytest.approx(6.0 * 2**0.5, rel=0.06), "all devices' shares together, and no more"
    assert drawn.mean() == pytest.approx(2 * DEVICES, abs=4 * 6.0 * 2**0.5 / RECORDS**0.5)
    assert event.rho == pytest.approx(0.5 / 6.0**2, rel=0.03)


def test_check_names_the_unit_and_other_training_is_refused() -> None:
    asked = recipe.parse(TEXT)
    spec = record_toy.make(asked).spec
    plan = compile(asked, spec, DEVICES, with_extensions(["record_toy"]))
    assert plan.spend is not None
    assert plan.spend.card.unit.startswith("record (block of text) of one device")
    assert "200" in plan.spend.card.adjacency
    assert asked.chosen["training.local_steps"] == 1
    for key, value in (("training.local_steps", 2), ("training.lr", 0.1), ("strategy.kind", "fedprox")):
        with pytest.raises(EdgewiseError) as caught:
            compile(recipe.parse(TEXT, overrides={key: value}), spec, DEVICES, BUILT_IN)
        assert caught.value.code == "E-COMBO"


def test_ten_hospitals_as_units_are_refused_with_the_arithmetic() -> None:
    changes = {"dp.unit": "device", "dp.records": 0, "dp.noise_multiplier": 0.0, "dp.epsilon": 1.2, "round.rounds": 50}
    asked = recipe.parse(TEXT, overrides=changes)
    with pytest.raises(EdgewiseError, match=r"2\.43 clips in each coordinate of the mean of 10 devices") as caught:
        compile(asked, record_toy.make(asked).spec, 10, BUILT_IN)
    assert caught.value.code == "E-DROWNED"
