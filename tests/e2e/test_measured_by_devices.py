"""Held-out losses that the devices of a round measure themselves, as a mean that comes with their sum."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invited import SECRETS, invitation
from mortal_disk import Disk
from played import play
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.runs.chosen import chosen_model
from edgewise.codecs.wire import pack
from edgewise.core import events, frame, keys, vector
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.simulation.keys import simulated_trust
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers.devices import Devices
from edgewise.drivers.workers.held_models import Downloads
from edgewise.engine import measured_models
from edgewise.engine.evaluation import COHORT, told_by_cohort
from edgewise.engine.trainer import registered
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.facts import decisive

SUMMED: dict[str, Any] = {
    "stage": [],
    "strategy.kind": "fedavg",
    "round.rounds": 3,
    "eval.every": 0,
    "eval.on_devices": True,
    "compare.local_only": False,
    "compare.centralised": False,
}


def told(out: Path, overrides: Mapping[str, Any]) -> list[events.Evaluated]:
    _, story, _ = play(out, {**SUMMED, **overrides})
    return [e for e in story if isinstance(e, events.Evaluated) and set(e.nll) == {COHORT}]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "masks"])
def test_the_mean_is_that_of_the_model_that_the_round_trained_from(tmp_path: Path, hidden: bool) -> None:
    masks = [{"kind": "clip", "l2": 4.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}]
    more = {"privacy": "hidden", "stage": masks} if hidden else {}
    found = told(tmp_path, more)
    assert [(e.model, e.round) for e in found] == [("federated", 0), ("federated", 1)]  # the base is measured beside it
    trainer = ToyTrainer(make_recipe(dict(SUMMED)))
    with RunStore(tmp_path) as store:
        models, evaluations = store.models(), store.evaluations()
        for e in found:
            params = store.blob(models[e.round + 1])
            held = [trainer.evaluate(d, params) for d in trainer.devices()]
            assert e.nll[COHORT] == pytest.approx(np.mean([h.nll / h.tokens for h in held]), rel=1e-4)
        assert {(e.model, e.round) for e in found} <= {(e.model, e.round) for e in evaluations}


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["commit", "keep"])
def test_a_run_that_is_killed_at_a_write_keeps_the_cohorts_measurements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """After each write of a round in turn. Nobody measures that round's model again, and it chooses the model."""
    settings = {**SUMMED, "eval.every": 1, "round.rounds": 4, "round.keep": "best", "simulation.engine": "inproc"}

    def left(out: Path) -> object:
        with RunStore(out) as store:
            found = [(e.model, e.round, dict(e.nll)) for e in store.evaluations()]
            which = chosen_model(store)
            best = store.kept(measured_models.BEST)
            assert best is not None
            return found, which, vector.to_bytes(best[0]), best[1], store.measures("federated", 1)

    monkeypatch.setattr(measured_models.MeasuredModels, "evaluate_if_due", lambda *_: None)  # as on a server
    play(tmp_path / "calm", settings)
    calm = left(tmp_path / "calm")
    assert [(name, round) for name, round, _ in calm[0]] == [("base", -1), *(("federated", n) for n in range(3))]
    real = getattr(RunStore, dies)
    for at in range(1, 5):
        left_to_write = at + (dies == "commit")  # The first commit is before round 0.

        def killed(store: RunStore, *args: Any, **more: Any) -> None:
            nonlocal left_to_write
            real(store, *args, **more)
            left_to_write -= 1
            if not left_to_write:
                raise KeyboardInterrupt

        out = tmp_path / f"{at}"
        with monkeypatch.context() as dying:
            dying.setattr(RunStore, dies, killed)
            with pytest.raises(KeyboardInterrupt):
                play(out, settings)
        play(out, settings, resume=True)
        assert left(out) == calm, at


def test_devices_without_held_out_text_count_neither_way() -> None:
    found = told_by_cohort(2, {"held_out": 1.5, "held_share": 0.5})
    assert found is not None
    assert (found.model, found.round, found.nll) == ("federated", 1, {COHORT: 3.0})
    assert told_by_cohort(0, {"held_out": 0.0, "held_share": 0.0}) is None
    assert told_by_cohort(0, {}) is None


@pytest.mark.parametrize("evaluates", [True, False])
def test_a_device_whose_owner_forbids_it_sends_no_held_out_loss(evaluates: bool) -> None:
    """It sends what a device without held-out text sends: zeros, which the mean does not count."""
    recipe = make_recipe(dict(SUMMED))
    trainer = ToyTrainer(recipe)
    plan = compile(recipe, trainer.spec, 8, BUILT_IN)
    raw, downloads = vector.to_bytes(np.zeros(trainer.spec.dim, np.float32)), Downloads(50, plan.downlink)
    downloads.put(vector.digest(raw), raw, keep=[vector.digest(raw)])
    trust = simulated_trust(keys.root(1))
    devices = Devices(
        plan, registered(trainer), Disk(), downloads, trust, lambda *_: SECRETS, evaluates=evaluates
    )  # fmt: skip
    answer = devices.answer(trainer.devices()[0], frame.dump(invitation(plan))).frame
    assert answer is not None
    update = frame.load(answer, len(answer))
    assert isinstance(update, frame.Contribution)
    head = dict(zip(plan.metrics.names, pack.unpack(update.payload, plan.at(0).encoded).head, strict=True))
    assert head["loss_last"]
    assert (head["held_out"] != 0.0, head["held_share"] != 0.0) == (evaluates, evaluates)


def test_the_run_is_another_one_where_devices_measure() -> None:
    plain = make_recipe({"eval.every": 3}).resolved()
    assert decisive(plain) == decisive(make_recipe().resolved())
    assert decisive(make_recipe({"eval.on_devices": True}).resolved()) != decisive(plain)


@pytest.mark.parametrize("unit", ["device", "example"])
def test_noise_of_devices_covers_a_held_out_loss_and_noise_in_steps_does_not(unit: str) -> None:
    more = {"dp.unit": "example", "dp.sample_rate": 0.1} if unit == "example" else {}
    recipe = make_recipe(
        {"privacy": "local_dp", "stage": [], "strategy.kind": "fedavg", "dp.epsilon": 8.0, "dp.delta": 1e-5,
         "dp.clip_l2": 1.0, "eval.on_devices": True, "metrics": "none", **more}
    )  # fmt: skip
    trainer = ToyTrainer(recipe)
    if unit == "device":
        assert compile(recipe, trainer.spec, 8, BUILT_IN).at(0).encoded.head == ()
        return
    with pytest.raises(EdgewiseError) as e:
        compile(recipe, trainer.spec, 8, BUILT_IN)
    assert e.value.code == "E-STATS"
