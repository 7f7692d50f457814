#!/usr/bin/env python3
"""Wake words of households: false negatives at 1 % false alarms of the base, homes alone, the federation, one place.

    python benchmarks/smart_home.py WAKE_WORDS.npz [--seeds 0,1,2] [--rounds 90] [--out FOLDER]

The file is described in docs/howto/keywords.md. Bytes are those of the frames that were sent. Runs that are already in
FOLDER are continued, or only read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from edgewise.apps.cli.demos import demo_recipe
from edgewise.apps.federation.federation import Federation
from edgewise.apps.federation.playing import has_run
from edgewise.plan.recipe.recipe import load

MODELS = ("base", "local_only", "federated", "centralised")


def by_word(summary: Any, model: str) -> dict[str, float]:
    """Return the false negatives of each keyword: the mean over its homes, after the last round."""
    found = [m for m in summary["simulator_metrics"] if m["name"] == "false_negatives" and m["model"] == model]
    words = defaultdict(list)
    for home, value in (found[-1]["devices"] if found else {}).items():
        words[home.rpartition("-")[0]].append(value)
    return {word: fmean(values) for word, values in words.items()}


def main() -> None:
    """Play the demonstration for each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=90)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print("seed   base  alone  federated  one place   less   up B   down B")
        for seed in map(int, given.seeds.split(",")):
            settings = {"seed": seed, "data.path": str(given.file.resolve()), "round.rounds": given.rounds}
            recipe = load(demo_recipe("smart-home"), {**settings, "simulation.engine": "inproc"})
            out = (given.out or Path(scratch)) / f"seed-{seed}"
            run = Federation(recipe).run(out, resume=has_run(out), progress=False)
            s = run.summary
            means = [fmean(by_word(s, model).values() or [float("nan")]) for model in MODELS]
            up, down = (s["bytes"][f"{way}_per_device_round"] for way in ("up", "down"))
            less = 1.0 - means[2] / means[0]
            figures = "  ".join(f"{mean:7.3f}" for mean in means)
            print(f"{seed:4} {figures}  {less:7.1%}  {up:6.0f}  {down:7.0f}", flush=True)


if __name__ == "__main__":
    main()
