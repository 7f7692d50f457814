"""Seconds of a round by its number of devices: everybody is in every round, d = 10, no training.

    python benchmarks/cohorts.py [--devices 1000,10000,100000] [--dim 10] [--rounds 3]

Each size runs in a process of its own (``engine_cost.py``). Devices, links, journal and database are all simulated by
that one process. Bar: a contribution costs at most 1.5 times as much in the largest cohort as in the smallest.
"""

from __future__ import annotations

import argparse
import sys

import bench

BAR = 1.5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default="1000,10000,100000")
    parser.add_argument("--dim", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    print(f"{bench.machine()}; d = {a.dim}, {a.rounds} rounds")
    print("| devices | CPU s a round | wall s a round | CPU ms a contribution |")
    print("|---|---|---|---|")
    each = {}
    for n in map(int, a.devices.split(",")):
        options = ["--dim", str(a.dim), "--devices", str(n), "--rounds", str(a.rounds)]
        r = bench.start([sys.executable, bench.script("engine_cost.py"), *options])
        each[n] = r["cpu_ms_per_contribution"]
        wall = r["ms_per_contribution"]
        print(f"| {n:,} | {each[n] * n / 1e3:.2f} | {wall * n / 1e3:.2f} | {each[n]:.3f} |", flush=True)
    growth = each[max(each)] / each[min(each)]
    print(f"largest to smallest: {growth:.2f}; bar {BAR:g}: {bench.verdict(growth, BAR)}")
    bench.say(cpu_ms_per_contribution=each, growth=round(growth, 3))


if __name__ == "__main__":
    main()
