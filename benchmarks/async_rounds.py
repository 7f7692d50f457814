"""Rounds that do not wait against synchronous ones with over-selection, on devices of very unequal speed.

    python benchmarks/async_rounds.py [--seeds 3] [--rounds 30] [--spread 1.5]

204 devices, each a piece of one package of this machine's standard library, train the model of byte_model.py for 8
local steps. A device's speed is log-normal with sigma ``--spread``. The same number of devices trains at a time
everywhere, 26. What differs is the rule of a round:

    synchronous, 20    26 devices are invited, and the first 20 contributions close the round (over-selection 1.3)
    synchronous, 5     the same with 5 of 7 devices, so 7 train at a time: more and smaller rounds
    asynchronous, 5    the first 5 contributions close the round, and 26 devices train at any time (``buffered``)

Data, speeds, links, local training and server algorithm are the same. Time is virtual: the simulated devices'.

    target     held-out loss (nats a byte, weighted mean over devices) of synchronous, 20, after ``--rounds`` rounds
    time       virtual seconds until the loss is at the target, between two evaluations by a straight line
    ratio      time of asynchronous, 5, over the shorter time of the two synchronous ones, for each seed
    uploads    contributions that the server took until then

Bar: ratio <= 0.5. Anchor: Huba et al. 2022, arXiv:2111.04877 (Papaya), up to 5 times as fast at high concurrency.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench
import byte_model

from edgewise.apps.simulate import simulation
from edgewise.core import events
from edgewise.plan.catalogue import Extension
from edgewise.plan.recipe import recipe as recipes
from edgewise.plan.recipe.recipe import Recipe

PIECES = 12  # of each package's text
AT_A_TIME, SMALL = 26, 5
BAR = 0.5
NEVER = float("inf")


class PiecesTrainer(byte_model.ByteTrainer):
    """The byte model on more devices: each package's text in pieces, so devices of one package are alike."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        whole, self._text = self._text, {}
        for name, text in whole.items():
            size = len(text) // PIECES
            self._text |= {f"{name}-{i:02}": text[i * size : (i + 1) * size] for i in range(PIECES)}

    def devices(self) -> Sequence[str]:
        return sorted(self._text)


EDGEWISE = Extension(trainer=PiecesTrainer)

# Rounds for one of the first rule, so that all take equally many contributions in all.
RULES: dict[str, tuple[int, dict[str, Any]]] = {
    "synchronous, 20": (1, {"round.sampling": "fixed", "round.cohort": 20, "round.overselect": 1.3}),
    "synchronous, 5": (4, {"round.sampling": "fixed", "round.cohort": SMALL, "round.overselect": 1.3}),
    "asynchronous, 5": (
        4,
        {
            "round.sampling": "buffered",
            "round.cohort": SMALL,
            "buffer.concurrency": AT_A_TIME,
            "buffer.max_staleness": 20,
            "buffer.damping": 0.5,
        },
    ),
}
TEXT = """
privacy = "none"
name = "async"
[round]
deadline_s = 1e9
[training]
lr = 0.05
schedule = "constant"
local_steps = 8
[eval]
devices = 34
[compare]
local_only = false
centralised = false
[simulation]
step_s = 1.0
"""


def play(rule: str, seed: int, rounds: int, spread: float) -> dict[str, Any]:
    """Play one run. Returns its curve of (virtual seconds, loss, contributions), and the contributions by staleness."""
    times, settings = RULES[rule]
    told: list[events.AnyEvent] = []
    changes = {
        "seed": seed, "simulation.speed_spread": spread, "round.rounds": rounds * times, "eval.every": times, **settings
    }  # fmt: skip
    recipe = recipes.parse(TEXT, overrides=changes)
    with tempfile.TemporaryDirectory() as scratch:
        simulation.run(
            recipe,
            out=Path(scratch) / "run",
            recipe_dir=Path(),
            extensions=["async_rounds"],
            sinks=[told.append],
            report=False,
        )
    at_s, taken, curve = 0.0, 0, list[tuple[float, float, int]]()
    for e in told:
        if isinstance(e, events.RoundFinished):
            at_s, taken = at_s + (e.waited_s or 0.0), taken + e.accepted
        elif isinstance(e, events.Evaluated):
            curve.append((at_s, sum(e.nll.values()) / sum(e.tokens.values()), taken))
    stale = Counter(e.staleness for e in told if isinstance(e, events.Accepted))
    lost = Counter(e.code for e in told if isinstance(e, events.Lost))
    return {"curve": curve, "stale": dict(sorted(stale.items())), "lost": dict(lost)}


def reached(curve: Sequence[tuple[float, float, int]], target: float) -> tuple[float, int]:
    """Find the time at which a curve is at the target, and the contributions by then. Infinite where it never is."""
    for (t0, l0, _), (t1, l1, n1) in pairwise(curve):
        if l1 <= target:
            return t0 + (t1 - t0) * max(0.0, l0 - target) / max(l0 - l1, 1e-12), n1
    return NEVER, 0


def main() -> None:
    """Print the table and the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--spread", type=float, default=1.5)
    a = parser.parse_args()
    print(f"{bench.machine()}; {a.rounds} rounds of 20, {a.seeds} seeds, sigma {a.spread:g}")
    print("| seed | rule | target | time | uploads | loss at the end | staleness, mean | refused as too old |")
    print("|---|---|---|---|---|---|---|---|")
    ratios, found = [], []
    for seed in range(a.seeds):
        times = {}
        target = 0.0
        for rule in RULES:
            bench.note(f"seed {seed}, {rule}")
            run = play(rule, seed, a.rounds, a.spread)
            target = target or run["curve"][-1][1]
            times[rule], uploads = reached(run["curve"], target)
            n = sum(run["stale"].values())
            mean = sum(s * k for s, k in run["stale"].items()) / n
            old = run["lost"].get("E-OUTDATED", 0)
            print(
                f"| {seed} | {rule} | {target:.4f} | {times[rule]:.0f} | {uploads} | {run['curve'][-1][1]:.4f} | "
                f"{mean:.2f} | {old} |",
                flush=True,
            )
            found.append({"seed": seed, "rule": rule, "target": target, "time_s": times[rule], **run})
        ratios.append(times["asynchronous, 5"] / min(times["synchronous, 20"], times["synchronous, 5"]))
    median = statistics.median(ratios)
    print(f"ratio: {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}): {bench.verdict(median, BAR)}")
    bench.say(ratios=ratios, median=median, runs=found)


if __name__ == "__main__":
    main()
