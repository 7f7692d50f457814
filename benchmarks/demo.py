"""A demo, from start to report, and its figures.

python benchmarks/demo.py [plays|code] [--recipe FILE] [--out DIR] [--set KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import tomllib
from pathlib import Path

import bench

os.environ.update({k: v for k, v in bench.QUIET.items() if k not in os.environ})
RECIPES = Path(bench.HERE).parent / "src" / "edgewise" / "assets" / "recipes"


def main() -> None:
    """Run and print."""
    from edgewise.apps.report import alone_or_together
    from edgewise.apps.simulate import simulation
    from edgewise.core import events
    from edgewise.plan.recipe import recipe

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=("plays", "code"), default="plays")
    parser.add_argument("--recipe", default="", help="another recipe than the demo's")
    parser.add_argument("--out", default="", help="keep the run directory here")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as TOML, e.g. round.rounds=2")
    a = parser.parse_args()
    overrides = {}
    for pair in a.set:
        key, _, value = pair.partition("=")
        overrides[key] = tomllib.loads(f"x = {value}")["x"]

    def sink(event: events.AnyEvent) -> None:
        if isinstance(event, events.PhaseStarted):
            bench.note(event.phase)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out, path = Path(a.out or folder), Path(a.recipe or RECIPES / f"{a.name}.toml")
        simulation.run(recipe.load(path, overrides), out=out, recipe_dir=path.parent, sinks=[sink])
        s = json.loads((out / "summary.json").read_text())
    wall = time.perf_counter() - began
    print(f"{bench.machine()}; engine {s['facts'].get('engine')}, {s['rounds']['played']} rounds\n")
    print(f"{'model':12} {'weighted mean':>14} {'median':>9} {'worst 10 %':>11} {'change':>8}")
    for name, q in s["perplexity"].items():
        if q:
            change = s["change_percent"].get(name)
            print(
                f"{name:12} {q['weighted_mean']:14.2f} {q['median']:9.2f} {q['worst_decile']:11.2f} "
                f"{'' if change is None else f'{change:+.1f} %':>8}"
            )
    print(f"\n{alone_or_together.sentence(s)}\n{alone_or_together.going_on(s)}".rstrip())
    b, t, better = s["bytes"], s["seconds"], s["share_improved"]
    print(f"\ndevices that do better than the base {better['over_base']}, than alone {better['over_local_only']}")
    up, down = b["up_per_device_round"], b["down_per_device_round"]
    print(f"bytes per device and round: up {up:.0f} ({b['up_ratio']:.2f} times less than float32), down {down:.0f}")
    print("seconds: " + ", ".join(f"{k} {v:.1f}" for k, v in t.items()) + f"; from start to report {wall:.1f}")
    print(f"participation: {s['participation']}")
    bench.say(
        perplexity={k: round(q["weighted_mean"], 4) for k, q in s["perplexity"].items() if q},
        change_percent=s["change_percent"],
        share_improved=better,
        longer=s["longer"],
        up_ratio=b["up_ratio"],
        up_per_device_round=b["up_per_device_round"],
        seconds={k: round(v, 1) for k, v in t.items()},
        wall_s=round(wall, 1),
        model=s["model_sha256"],
    )


if __name__ == "__main__":
    main()
