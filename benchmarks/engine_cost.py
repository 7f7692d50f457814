"""The engine's own cost per contribution: no training, d coordinates, every frame encoded, packed, journalled, decoded.

    python benchmarks/engine_cost.py [--dim 100000] [--devices 100] [--cohort 0] [--rounds 12] [--bits 0]

Prints milliseconds per contribution over everything but the trainer: invitation, device machine, pipeline encode,
pack, frame, journal, frame decode, unpack, fold, and the share of the round's commit; per round, then the median over
rounds 3.. (wall clock, and the processor time of the process). The reference is a plain in-memory ``sum += x`` of the
same vectors in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import resource
import statistics
import tempfile
import time
from pathlib import Path

import bench
import numpy as np

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.core.training import HeldOut, Update
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe import recipe

BAR_MS = 1.0  # float32, d = 100,000
ARGS = argparse.Namespace(dim=100_000, devices=100)


class Idle:
    """A trainer that does nothing: the update is a fixed random vector."""

    def __init__(self, _: object) -> None:
        self.spec = Spec.of([("w", (ARGS.dim,), "float32")])
        self._x = np.random.default_rng(0).normal(0, 1e-3, ARGS.dim).astype(np.float32)

    def initial(self):
        return np.zeros(ARGS.dim, np.float32)

    def devices(self):
        return [f"d{i:06d}" for i in range(ARGS.devices)]

    def fit(self, request):
        return Update(self._x, {"loss_first": 1.0, "loss_last": 1.0}, 1.0)

    def evaluate(self, device, params):
        return HeldOut(1.0, 1)

    def sizes(self):
        return {}


EDGEWISE = Extension(trainer=Idle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=100_000)
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--cohort", type=int, default=0, help="devices of a round; 0 = all")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--bits", type=int, default=0, help="0 = float32, else quantized per block")
    parser.parse_args(namespace=ARGS)
    importlib.import_module("engine_cost").ARGS = ARGS  # the extension is imported by name, this file runs as __main__
    stages = [{"kind": "weigh"}] + ([{"kind": "quantize", "bits": ARGS.bits}] if ARGS.bits else [])
    plain = {
        "privacy": "none",
        "round": {"rounds": ARGS.rounds, **({"sampling": "fixed", "cohort": ARGS.cohort} if ARGS.cohort else {})},
        "stage": stages,
        "eval": {"every": 0, "devices": 1},
        "compare": {"local_only": False, "centralised": False},
    }
    ends: list[tuple[float, float]] = []
    finished: list[events.RoundFinished] = []

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.RoundFinished):
            ends.append((time.perf_counter(), time.process_time()))
            finished.append(event)

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        simulation.run(
            recipe.from_plain(plain),
            out=Path(out),
            recipe_dir=Path(),
            extensions=["engine_cost"],
            sinks=[sink],
            report=False,
        )
    # From the end of one round to the end of the next: includes the commit, which the event itself precedes.
    each = ARGS.cohort or ARGS.devices
    wall, cpu = ([1e3 * (b[k] - a[k]) / each for a, b in itertools.pairwise(ends[1:])] for k in (0, 1))
    x, total = np.ones(ARGS.dim, np.float32), np.zeros(ARGS.dim, np.float32)
    began = time.perf_counter()
    for _ in range(each):
        total += x
    floor = (time.perf_counter() - began) / each
    value = statistics.median(wall)
    form = f"{ARGS.bits} bits" if ARGS.bits else "float32"
    print(f"{bench.machine()}; d = {ARGS.dim}, {each} of {ARGS.devices} devices, {form}")
    print(f"ms per contribution: wall {bench.spread(wall)}, cpu {bench.spread(cpu)}; plain add {1e3 * floor:.4f}")
    if (ARGS.dim, ARGS.bits) == (100_000, 0):
        print(f"bar {BAR_MS} ms: {bench.verdict(value, BAR_MS)}")
    bench.say(
        dim=ARGS.dim,
        bits=ARGS.bits or 32,
        ms_per_contribution=round(value, 4),
        cpu_ms_per_contribution=round(statistics.median(cpu), 4),
        ms_plain_add=round(1e3 * floor, 4),
        first_round_s=round(ends[0][0] - started, 3),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        bytes_up=round(sum(r.bytes_up for r in finished) / sum(r.accepted for r in finished)),
    )


if __name__ == "__main__":
    main()
