"""Peak memory of a whole run by coordinate: three devices in one process, d coordinates, no training.

    python benchmarks/large_run.py [--dim 100000000] [--devices 3] [--rounds 2] [--recipe plain|feedback]

``plain`` sends float32 (``weigh``) into FedAvg. ``feedback`` puts error feedback around ``top_k`` and 4 bits, and steps
with FedAdam.
The trainer makes a new update for each request and keeps none; what a model in training needs comes on top. The figure
is the largest resident set of the process (VmHWM), Python and libraries included. Bar: 24 bytes a coordinate (plain).
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import measure
import numpy as np

from edgewise.core import events
from edgewise.core.training import HeldOut, Update
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Extension

BAR = 24.0
ARGS = argparse.Namespace(dim=100_000_000, devices=3)
WEIGH = {"kind": "weigh", "cap": 16.0}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"stage": [WEIGH]},
    "feedback": {
        "stage": [
            WEIGH,
            {"kind": "feedback"},
            {"kind": "top_k", "fraction": 0.01},
            {"kind": "quantize", "bits": 4},
        ],
        "strategy": {"kind": "fedadam"},
    },
}


class Fresh:
    """A trainer that does nothing and keeps nothing."""

    def __init__(self, _: object) -> None:
        self.spec = Spec.of([("w", (ARGS.dim,), "float32")])

    def initial(self) -> np.ndarray:
        return np.zeros(ARGS.dim, np.float32)

    def devices(self) -> list[str]:
        return [f"d{i:06d}" for i in range(ARGS.devices)]

    def fit(self, request: Any) -> Update:
        x = np.random.default_rng(request.round).random(ARGS.dim, np.float32)
        x *= np.float32(1e-3)
        return Update(x, {"loss_first": 1.0, "loss_last": 1.0}, 8.0)

    def evaluate(self, device: str, params: np.ndarray) -> HeldOut:
        return HeldOut(1.0, 1)

    def sizes(self) -> dict[str, float]:
        return {}


EDGEWISE = Extension(trainer=Fresh)


def child(a: argparse.Namespace) -> None:
    """One run in this process."""
    from edgewise.apps.simulate import simulation
    from edgewise.plan.recipe import recipe

    importlib.import_module("large_run").ARGS = a  # the extension is imported by name, this file runs as __main__
    plain = {
        "privacy": "none",
        "round": {"rounds": a.rounds, "deadline_s": 1e6},  # the simulated links are those of phones
        "eval": {"every": 0, "devices": 1},
        "compare": {"local_only": False, "centralised": False},
        **RECIPES[a.recipe],
    }
    began, met = time.perf_counter(), []

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.RoundFinished):
            met.append(event.met and event.accepted == a.devices)

    with tempfile.TemporaryDirectory() as out:
        simulation.run(
            recipe.from_plain(plain),
            out=Path(out),
            recipe_dir=Path(),
            extensions=["large_run"],
            sinks=[sink],
            report=False,
        )
    if met != [True] * a.rounds:
        raise RuntimeError(f"rounds ended without all devices: {met}")
    bench.say(peak_mb=round(measure.high_water_mb(), 1), seconds=round(time.perf_counter() - began, 1))


def main() -> None:
    """Run one recipe in a process of its own; print bytes per coordinate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=100_000_000)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="plain")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a)
        return
    done = bench.start([sys.executable, __file__, *sys.argv[1:], "--child"])
    each = done["peak_mb"] * 2**20 / a.dim
    print(f"{bench.machine()}; d = {a.dim}, {a.devices} devices, {a.rounds} rounds, {a.recipe}")
    print(f"peak {done['peak_mb']:.0f} MiB, {each:.1f} bytes a coordinate, {done['seconds']:.0f} s")
    if a.recipe == "plain":
        print(f"bar {BAR:g}: {bench.verdict(each, BAR)}")
    bench.say(dim=a.dim, recipe=a.recipe, bytes_per_coordinate=round(each, 2), **done)


if __name__ == "__main__":
    main()
