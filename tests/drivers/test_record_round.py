"""A whole run with record-level privacy does what its plan accounts: noise, clip, rate and steps, seen in the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import record_toy
from record_toy import DEVICES, RECORDS

from edgewise.apps import simulate
from edgewise.drivers.store import RunStore
from edgewise.plan import recipe
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile

TEXT = """
privacy = "record"
[dp]
epsilon = 60.0
delta = 1e-5
clip_l2 = 0.5
sample_rate = 0.5
[round]
rounds = 1
[training]
optimizer = "sgd"
lr = 1.0
local_steps = 8
clip_grad = 0.0
[strategy]
kind = "fedavg"
[compare]
centralised = false
local_only = false
"""


@pytest.mark.slow
def test_what_is_executed_is_what_is_accounted(tmp_path: Path) -> None:
    asked = recipe.parse(TEXT)
    simulate.run(asked, out=tmp_path, recipe_dir=tmp_path, extensions=["record_toy"], sinks=[], report=False)
    with RunStore(tmp_path) as store:
        x = store.blob(store.models()[1]).astype(np.float64)
    plan = compile(asked, record_toy.make(asked).spec, DEVICES, with_extensions(["record_toy"]))
    [event] = plan.spend.events
    assert (event.unit, event.sampling, event.z) == ("record", "poisson", plan.spend.z)
    clip, rate, steps, z = asked.dp.clip_l2, event.rate, event.steps, event.z
    drawn = -x * rate * RECORDS / clip  # in clips: how often each record was drawn, with noise; a mean over devices
    noise, records = drawn[RECORDS:], drawn[:RECORDS]
    assert noise.std() == pytest.approx(z * (steps / DEVICES) ** 0.5, rel=0.06)
    spread = ((rate * (1 - rate) + z * z) * steps / DEVICES) ** 0.5
    assert records.mean() == pytest.approx(rate * steps, abs=4 * spread / RECORDS**0.5)
    assert records.std() == pytest.approx(spread, rel=0.2)
    assert z < 1.0, "else the noise hides from this test how often records are drawn"
