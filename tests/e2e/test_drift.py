"""Whole runs on a stream: a stopped one ends in the same bytes, and devices' stores do not grow with the windows."""

from __future__ import annotations

import json

import pytest
import tiny_model

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.recipe.recipe import from_plain

WINDOWS = 4
SHARED = [{"kind": "clip", "l2": 8.0}, {"kind": "quantize", "bits": 4, "grid": "shared"}, {"kind": "wrap"}]
HIDDEN = {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "stage": [{"kind": "rotate"}, *SHARED]}
PRIVATE = {
    "privacy": "central_dp", "metrics": "none", "stage": [], "dp": {"epsilon": 20.0, "delta": 1e-5, "clip_l2": 4.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    rows = [
        {"who": f"d{d}", "at": window, "text": f"device {d} in {window} saw {i} of them " * 4}
        for d in range(4)
        for window in range(WINDOWS)
        for i in range(3)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def recipe(overrides):
    plain = {
        "privacy": "none",
        "model": {"base": "model"},
        "data": {
            "source": "jsonl", "path": "t.jsonl", "owner": "who", "time": "at", "sequence_len": 16, "holdout": 0.2,
            "stream": True, "window": 1.0, "window_start": "0", "replay": 2,
        },
        "round": {"rounds": WINDOWS, "sampling": "all"},
        "training": {"batch": 4, "lr": 0.01, "local_steps": 2},
        "drift": {"penalty": 1e4, "alarm": True, "threshold": 1e-6, "tolerance": 0.0, "act_at": 0.25, "act_step": 2.0},
        "metric": [{"name": "in_alarm", "lower": 0.0, "upper": 1.0}],
        "eval": {"every": 2},
        "compare": {"local_only": False, "centralised": False},
    }  # fmt: skip
    return from_plain({**plain, **overrides})


def play(place, out, overrides, **more):
    simulation.run(recipe(overrides), out=out, recipe_dir=place, report=False, **more)
    with RunStore(out) as store:
        return store.models()


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [HIDDEN, PRIVATE], ids=["hidden", "private"])
def test_a_stopped_run_ends_in_the_same_bytes(place, tmp_path, overrides):
    calm = play(place, tmp_path / "calm", overrides)
    accepted = []

    def stop(event):
        if isinstance(event, events.Accepted):
            accepted.append(event)
            if len(accepted) == 9:  # in the third of four windows
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(place, tmp_path / "stopped", overrides, sinks=[stop])
    assert play(place, tmp_path / "stopped", overrides, resume=True) == calm


@pytest.mark.slow
def test_what_devices_store_does_not_grow_with_the_windows(place, tmp_path):
    sizes = []
    for rounds in (3, 4):
        out = tmp_path / str(rounds)
        play(place, out, {"round": {"rounds": rounds, "sampling": "all"}})
        sizes.append(sum(f.stat().st_size for f in (out / "devices").rglob("*") if f.is_file()))
    assert sizes[0] > 0
    assert sizes[1] <= 1.01 * sizes[0]
