"""MOON in whole runs: what devices keep goes on after a stop, and other trainers are refused before a run starts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import tiny_model
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain


def final(out: Path) -> object:
    with RunStore(out) as store:
        return store.models(), store.measures("federated")


def test_a_trainer_without_representations_is_refused_before_the_run_starts(tmp_path: Path) -> None:
    recipe = make_recipe({"strategy": {"kind": "moon"}})
    with pytest.raises(EdgewiseError, match=r"E-COMBO.*moon.*gives no representations") as caught:
        simulation.run(recipe, out=tmp_path / "run", recipe_dir=tmp_path, extensions=["toy"], report=False)
    assert caught.value.fix


@pytest.mark.slow
def test_the_last_model_of_a_device_goes_on_after_a_stop(tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "model")
    for name in ("ann", "bob", "cat"):
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "1.txt").write_text("".join(f"{name} sees the fox {i}\n" for i in range(40)))

    def recipe(kind: dict[str, object]) -> object:
        return from_plain({
            "privacy": "none", "model": {"base": "model", "precision": "float32"},
            "data": {"source": "text", "path": "notes", "sequence_len": 32},
            "training": {"batch": 4, "lr": 0.01, "local_steps": 2}, "strategy": kind, "stage": [],
            "round": {"rounds": 3, "sampling": "all", "overselect": 1.0},
            "compare": {"local_only": False, "centralised": False}, "simulation": {"engine": "inproc"},
        })  # fmt: skip

    common = {"recipe_dir": tmp_path, "report": False}
    moon = recipe({"kind": "moon", "mu": 5.0})
    simulation.run(moon, out=tmp_path / "calm", **common)
    seen: Counter[type] = Counter()

    def stop(event: object) -> None:
        seen[type(event)] += 1
        if isinstance(event, events.Accepted) and seen[events.Accepted] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulation.run(moon, out=tmp_path / "stormy", sinks=[stop], **common)
    simulation.run(moon, out=tmp_path / "stormy", resume=True, **common)
    assert final(tmp_path / "calm") == final(tmp_path / "stormy")
    finals = {}
    for name, kind in (("zero", {"kind": "moon", "mu": 0.0}), ("plain", {"kind": "fedavg"})):
        simulation.run(recipe(kind), out=tmp_path / name, **common)
        finals[name] = final(tmp_path / name)
    assert finals["zero"] == finals["plain"] != final(tmp_path / "calm")
