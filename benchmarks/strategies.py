"""FedAvg beside FedProx, SCAFFOLD, FedDyn and FedNova on devices of few classes: at equal rounds and at equal bytes.

    python benchmarks/strategies.py [--rounds 60] [--seeds 3] [--rates 0.1,0.2,0.5]

24 owners (``split_labels.py``), 6 of them in a round, two passes over their own 20 to 240 points, plain SGD, float32.
Every strategy gets the rate, of those given, that is best for it with the first seed; then all seeds are played.

    loss        of the common test set after the last round, mean and spread over seeds
    at bytes    the same when as many bytes had gone up and down as FedAvg's run takes in half its rounds

Bar: none. What is best depends on the task; this says what it is on this one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bench

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.plan.recipe import recipe as recipes

STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {"kind": "fedavg"},
    "fedprox, mu 0.1": {"kind": "fedprox", "mu": 0.1},
    "fednova": {"kind": "fednova"},
    "scaffold": {"kind": "scaffold"},
    "feddyn, alpha 0.1": {"kind": "feddyn", "alpha": 0.1},
    "feddyn, alpha 0.01": {"kind": "feddyn", "alpha": 0.01},
}


def play(strategy: dict[str, Any], rate: float, seed: int, rounds: int) -> list[tuple[float, float]]:
    """(bytes so far, loss of the test set) at each evaluation."""
    plain = {
        "privacy": "none",
        "name": "strategies",
        "seed": seed,
        "round": {"rounds": rounds, "sampling": "fixed", "cohort": 6, "overselect": 1.0},
        "training": {
            "optimizer": "sgd", "lr": rate, "schedule": "constant", "batch": 16, "clip_grad": 0.0,
            "local_epochs": 2.0, "max_local_steps": 30,
        },
        "strategy": strategy,
        "stage": [],
        "eval": {"every": 5},
        "compare": {"local_only": False, "centralised": False},
        "simulation": {"engine": "inproc"},
    }  # fmt: skip
    told: list[events.AnyEvent] = []
    with tempfile.TemporaryDirectory() as scratch:
        simulation.run(
            recipes.from_plain(plain),
            out=Path(scratch) / "run",
            recipe_dir=Path(),
            extensions=["split_labels"],
            sinks=[told.append],
            report=False,
        )
    sent, curve = 0.0, []
    for e in told:
        if isinstance(e, events.RoundFinished):
            sent += e.bytes_up + e.bytes_down
        if isinstance(e, events.Evaluated):
            curve.append((sent, sum(e.nll.values()) / sum(e.tokens.values())))
    return curve


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", default="0.1,0.2,0.5")
    a = parser.parse_args()
    rates, budget, found = [float(r) for r in a.rates.split(",")], 0.0, {}
    print(f"{bench.machine()}; {a.rounds} rounds, {a.seeds} seeds")
    print("| strategy | rate | MB of a run | loss | at bytes |")
    print("|---|---|---|---|---|")
    for name, strategy in STRATEGIES.items():
        first = {rate: play(strategy, rate, 0, a.rounds) for rate in rates}
        rate = min(rates, key=lambda r: first[r][-1][1])
        curves = [first[rate], *(play(strategy, rate, seed, a.rounds) for seed in range(1, a.seeds))]
        budget = budget or curves[0][-1][0] / 2
        ends = [curve[-1][1] for curve in curves]
        then = [[loss for sent, loss in curve if sent <= budget * 1.001][-1] for curve in curves]
        found[name] = {"rate": rate, "loss": ends, "at_bytes": then, "mb": curves[0][-1][0] / 1e6}
        cells = [f"{statistics.mean(x):.3f} ({min(x):.3f} to {max(x):.3f})" for x in (ends, then)]
        print(f"| {name} | {rate:g} | {found[name]['mb']:.1f} | {cells[0]} | {cells[1]} |", flush=True)
    bench.say(**found)


if __name__ == "__main__":
    main()
