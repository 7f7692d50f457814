"""A whole run with record-level privacy does what its plan accounts: noise, clip, rate and steps, seen in the model."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import record_toy
from record_toy import DEVICES, RECORDS

from edgewise.apps.simulate import check, simulation
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.records import protect_records, records
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import with_extensions
from edgewise.plan.compile import compile
from edgewise.plan.recipe import recipe
from edgewise.privacy import grid

TEXT = """
privacy = "local_dp"
[dp]
unit = "example"
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


@pytest.mark.long(sample=0)
@pytest.mark.slow
def test_what_is_executed_is_what_is_accounted(tmp_path: Path) -> None:
    asked = recipe.parse(TEXT)
    simulation.run(asked, out=tmp_path, recipe_dir=tmp_path, extensions=["record_toy"], sinks=[], report=False)
    with RunStore(tmp_path) as store:
        x = store.blob(store.models()[1]).astype(np.float64)
    plan = compile(asked, record_toy.make(asked).spec, DEVICES, with_extensions(["record_toy"]))
    [event] = plan.spend.events
    assert (event.unit, event.sampling, event.z) == ("example", "poisson", plan.spend.z)
    clip, rate, steps, z = asked.dp.clip_l2, event.rate, event.steps, event.z
    drawn = -x * rate * RECORDS / clip  # in clips: how often each record was drawn, with noise; a mean over devices
    noise, records = drawn[RECORDS:], drawn[:RECORDS]
    assert noise.std() == pytest.approx(z * (steps / DEVICES) ** 0.5, rel=0.06)
    spread = ((rate * (1 - rate) + z * z) * steps / DEVICES) ** 0.5
    assert records.mean() == pytest.approx(rate * steps, abs=4 * spread / RECORDS**0.5)
    assert records.std() == pytest.approx(spread, rel=0.2)
    assert z < 1.0, "else the noise hides from this test how often records are drawn"


ALL = DEVICES * RECORDS
QUICK = {"dp.epsilon": 0.0, "dp.noise_multiplier": 8.0}  # to account for


@pytest.mark.slow
def test_a_delta_that_says_nothing_of_records_ends_before_a_step(tmp_path: Path) -> None:
    """One that would do for as many devices: a mechanism that shows a record of its own on average keeps it."""
    said = rf"{ALL:,} blocks of text"
    for start in (
        lambda asked: simulation.run(asked, out=tmp_path / "run", recipe_dir=tmp_path, extensions=["record_toy"]),
        lambda asked: check.examine(asked, tmp_path, with_extensions(["record_toy"])),
    ):
        with pytest.raises(EdgewiseError, match=said) as caught:
            start(recipe.parse(TEXT, overrides={**QUICK, "dp.delta": 1.01 * ALL**-1.1}))
        assert caught.value.code == "E-VALUE"
        fix = re.search(r"dp\.delta = ([0-9.e-]+):", caught.value.fix)
        assert fix
    found = check.examine(
        recipe.parse(TEXT, overrides={**QUICK, "dp.delta": float(fix[1])}), tmp_path, with_extensions(["record_toy"])
    )
    assert "the n blocks of text on them" in found["privacy"]["card"]["below"]


@pytest.mark.slow
def test_a_device_compares_delta_with_its_own_records() -> None:
    """On a device there is nobody else to count."""
    asked = recipe.parse(TEXT, overrides={**QUICK, "dp.delta": 2.0 * RECORDS**-1.1})
    plan = compile(asked, record_toy.make(asked).spec, 2, with_extensions(["record_toy"]))
    with pytest.raises(EdgewiseError, match=f"{RECORDS:,} blocks of text"):
        protect_records(plan, registered(record_toy.make(asked, devices=1)))


@pytest.mark.long(sample=0)
def test_records_are_counted_over_all_devices_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A device whose blocks cannot be read trains on none, and is named; a full disk says nothing of them, and ends the
    run."""
    asked = recipe.parse(TEXT, overrides={**QUICK, "dp.delta": 0.2})
    trainer = record_toy.make(asked)
    plan = compile(asked, trainer.spec, DEVICES, with_extensions(["record_toy"]))

    def read(device: str) -> int:
        if device == "d1":
            raise OSError("unreadable")
        return RECORDS

    def full(device: str) -> int:
        raise StoreError("E-DISK", "no space left.", "free space.")

    monkeypatch.setattr(trainer, "records", read)
    with pytest.raises(EdgewiseError, match=f"{2 * RECORDS:,} blocks of text"):
        protect_records(plan, registered(trainer))
    assert f"the records of {DEVICES - 1} of {DEVICES} devices; those of 1 are missing: d1" in caplog.text
    uncounted = replace(registered(trainer), counts=None)
    assert records(uncounted, "d0") is None
    with pytest.raises(EdgewiseError, match="E-COMBO"):
        protect_records(plan, uncounted)
    monkeypatch.setattr(trainer, "records", full)
    with pytest.raises(StoreError):
        protect_records(plan, registered(trainer))


@pytest.mark.slow
def test_a_device_that_trains_alone_has_no_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing leaves it. Noise would make the federation look better than it is."""
    drawn, true = [], grid.grid_noise
    monkeypatch.setattr(grid, "grid_noise", lambda on, n, key: drawn.append(n) or true(on, n, key))
    asked = recipe.parse(TEXT, overrides={**QUICK, "compare.local_only": True})
    simulation.run(asked, out=tmp_path, recipe_dir=tmp_path, extensions=["record_toy"], sinks=[], report=False)
    with RunStore(tmp_path) as store:
        assert store.evaluated("local_only", 0)
    assert len(drawn) == DEVICES * asked.training.local_steps
