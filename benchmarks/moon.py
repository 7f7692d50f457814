"""MOON beside FedAvg and FedProx on skewed text: perplexity at equal rounds, and processor time.

    python benchmarks/moon.py [--rounds 12] [--seeds 3] [--kinds fedavg,moon]

Devices hold lines of Shakespeare's plays, of one character each (``lora_rules.py``, skewed). Six of them train the
bundled model with LoRA of rank 4 in a round. MOON has no term in a device's first round.

    perplexity   weighted mean over the held-out text of all devices after the last round, mean and range over seeds
    processor    seconds of processor time of a run, mean over seeds

Bar: none.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import lora_rules

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.plan.recipe import recipe as recipes

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"kind": "fedavg"},
    "fedprox, mu 0.1": {"kind": "fedprox", "mu": 0.1},
    "moon, mu 1, tau 0.5": {"kind": "moon", "mu": 1.0, "tau": 0.5},
    "moon, mu 0.1, tau 0.5": {"kind": "moon", "mu": 0.1, "tau": 0.5},
}


def play(strategy: dict[str, Any], seed: int, rounds: int) -> tuple[float, float]:
    """Perplexity after the last round, and seconds of processor time."""
    told: list[events.AnyEvent] = []
    plain = {**lora_rules.recipe("fedit", "skewed", "4", seed, rounds), "name": "moon", "strategy": strategy}
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        simulation.run(
            recipes.from_plain(plain), out=Path(scratch) / "run", recipe_dir=Path(), sinks=[told.append], report=False
        )
    last = [e for e in told if isinstance(e, events.Evaluated)][-1]
    return math.exp(sum(last.nll.values()) / sum(last.tokens.values())), time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", default="fedavg,fedprox,moon")
    a = parser.parse_args()
    print(f"{bench.machine()}; {a.rounds} rounds, {a.seeds} seeds")
    print("| strategy | perplexity | processor s |")
    print("|---|---|---|")
    found = {}
    for name, strategy in STRATEGIES.items():
        if strategy["kind"] not in a.kinds.split(","):
            continue
        runs = []
        for seed in range(a.seeds):
            runs.append(play(strategy, seed, a.rounds))
            print(f"{name}, seed {seed}: {runs[-1][0]:.2f}, {runs[-1][1]:.1f} s", file=sys.stderr, flush=True)
        ends, took = zip(*runs, strict=True)
        found[name] = {"perplexity": ends, "processor_s": took}
        mean = f"{statistics.mean(ends):.2f} ({', '.join(f'{x:.2f}' for x in ends)})"
        print(f"| {name} | {mean} | {statistics.mean(took):.1f} |", flush=True)
    bench.say(**found)


if __name__ == "__main__":
    main()
