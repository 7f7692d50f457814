"""Server memory of a stage survives a crash: a stopped and resumed run ends in the same model."""

from __future__ import annotations

import numpy as np
import pytest
from toy_recipe import make_recipe

from edgewise.apps.simulate import simulation
from edgewise.core.memory import flat
from edgewise.drivers.storage.run_store import RunStore

STAGES = [{"kind": "weigh", "cap": 160}, {"kind": "sketch", "ratio": 3.0, "rows": 3, "keep": 0.2, "momentum": 0.5}]


class Stop(Exception):
    """Stands for a crash."""


def _end(out):
    with RunStore(out) as store:
        checkpoint = store.load()
        return store.models(), checkpoint


@pytest.mark.slow
def test_a_resumed_sketch_ends_in_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_DIM", "300")
    recipe = make_recipe({"stage": STAGES, "compare.local_only": False, "compare.centralised": False})
    common = {"recipe_dir": tmp_path, "extensions": ["toy"], "report": False}

    def stop_in_round_2(event):
        if getattr(event, "device", "") and event.round == 2:
            raise Stop

    simulation.run(recipe, out=tmp_path / "calm", **common)
    with pytest.raises(Stop):
        simulation.run(recipe, out=tmp_path / "stormy", sinks=[stop_in_round_2], **common)
    _, half = _end(tmp_path / "stormy")
    assert half.next_round == 2
    assert all(np.any(x) for x in flat(half.memory).values()), "there must be something to lose"
    simulation.run(recipe, out=tmp_path / "stormy", resume=True, **common)
    (calm, a), (stormy, b) = _end(tmp_path / "calm"), _end(tmp_path / "stormy")
    assert calm == stormy
    assert {k: v.tobytes() for k, v in flat(a.memory).items()} == {k: v.tobytes() for k, v in flat(b.memory).items()}
    assert len(set(calm)) > 2, "the model moves"
