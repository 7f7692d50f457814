"""A pool of two worker processes against one process: the federated part of the recipe of `demo code`.

    python benchmarks/pool.py [--rounds 6] [--repeats 3] [--workers 2] [--recipe FILE]

Comparisons are left out. ``federated`` is from the first evaluation to the last round's commit and evaluation,
``rounds`` the sum of its rounds, ``wall`` everything from the start of the process to the report. One torch thread per
process. Both must end in the same model bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import bench

BAR = 1.6
DEMO = Path(bench.HERE).parent / "src" / "edgewise" / "assets" / "recipes" / "code.toml"


def child(engine: str, a: argparse.Namespace) -> None:
    """One run; prints its times."""
    began = time.time()
    from edgewise.apps.simulate import simulation
    from edgewise.core import events
    from edgewise.plan.recipe import recipe

    overrides = {
        "round.rounds": a.rounds,
        "simulation.engine": engine,
        "simulation.workers": a.workers,
        "compare.local_only": False,
        "compare.centralised": False,
    }
    told: list[events.AnyEvent] = []
    with tempfile.TemporaryDirectory() as out:
        path = Path(a.recipe)
        chosen = recipe.load(path, overrides)
        simulation.run(chosen, out=Path(out), recipe_dir=path.parent, sinks=[told.append])
    phases = {e.phase: e.at_s for e in told if isinstance(e, events.PhaseStarted)}
    rounds = [e for e in told if isinstance(e, events.RoundFinished)]
    end = next(e for e in told if isinstance(e, events.RunFinished))
    bench.say(
        federated_s=round(phases["report"] - phases["federated"], 3),
        rounds_s=round(sum(e.seconds for e in rounds), 3),
        load_s=round(phases["federated"] - began, 3),
        wall_s=round(end.at_s - began, 3),
        model=end.model,
    )


def main() -> None:
    """Interleave both and print the speed-ups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipe", default=str(DEMO))
    parser.add_argument("--child", choices=["inproc", "pool"], help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a.child, a)
        return
    same = ["--rounds", str(a.rounds), "--workers", str(a.workers), "--recipe", a.recipe]
    runs = {
        engine: lambda e=engine: bench.start([sys.executable, __file__, *same, "--child", e])
        for engine in ("inproc", "pool")
    }
    done = bench.interleave(a.repeats, **runs)
    print(f"\n{bench.machine()}; {a.rounds} rounds, {a.workers} workers")
    figures = {}
    for key in ("federated_s", "rounds_s", "load_s", "wall_s"):
        one, many = ([r[key] for r in done[e]] for e in ("inproc", "pool"))
        figures[key.removesuffix("_s")] = round(bench.ratio(one, many), 3)
        print(f"{key:12} inproc {bench.spread(one)}  pool {bench.spread(many)}  faster {bench.ratios(one, many)}")
    same_model = len({r["model"] for results in done.values() for r in results}) == 1
    met = "met" if figures["federated"] >= BAR else f"MISSED ({figures['federated']} instead of {BAR})"
    print(f"federated part {figures['federated']} times as fast; bar {BAR}: {met}; same model bytes: {same_model}")
    bench.say(**figures, same_model=same_model)


if __name__ == "__main__":
    main()
