#!/usr/bin/env python3
"""Faults from vibration: accuracy of base, factories alone, deployment and one place, and bytes of two links.

    python benchmarks/industrial.py BEARINGS.npz [--seeds 0,1,2] [--validation] [--only-deployment] [--out FOLDER]

The file is described in docs/howto/vibration.md. With ``--validation`` the first 60 % of each recording are cut again
and the rest is not read, to choose settings. Runs that are already in FOLDER are continued, or only read.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from edgewise.apps.cli.shipped import FOLDER
from edgewise.apps.deployments import industrial
from edgewise.apps.deployments.industrial_page import LINKS

MODELS = ("base", "alone", "federated", "whole", "end_to_end", "central")


def main() -> None:
    """Play the deployment for each seed and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--validation", action="store_true", help="measure on a third part, to choose settings")
    parser.add_argument("--only-deployment", action="store_true", help="without the baselines")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    given = parser.parse_args()
    runs = ("encoder", "layers") if given.only_deployment else industrial.RUNS
    with tempfile.TemporaryDirectory() as scratch:
        for seed in map(int, given.seeds.split(",")):
            settings = {"seed": seed, "vibration.validation": given.validation, "simulation.engine": "inproc"}
            at = (given.out or Path(scratch)) / f"seed-{seed}"
            found = industrial.play(FOLDER, given.file, at, settings, runs=runs)
            print(f"seed {seed}   accuracy  early  false alarms  missed  own load")
            for name in (model for model in MODELS if model in found["models"]):
                m = found["models"][name]
                shares = (m[key] for key in ("accuracy", "early", "false_alarms", "missed", "own_accuracy"))
                print(f"{name:12}", "  ".join(f"{share:.3f}" for share in shares))
            for link in LINKS:
                one = found["links"][link]
                print(f"{link}: {one['total']:,} B, {one['share']:.1%} of raw, first model {one['first_model']:,} B")
            if (end := found["links"].get("end_to_end")) is not None:
                print(f"end to end: {end['up'] + end['down']:,} B, {end['share']:.1f} times the raw data", flush=True)


if __name__ == "__main__":
    main()
