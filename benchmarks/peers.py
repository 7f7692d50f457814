"""edgewise beside a bare torch loop, pfl-research and Flower: the same job, the same machine, the same minutes.

    python benchmarks/peers.py --peers DIR --python-pfl PY --python-flower PY [--repeats 3] [--only bare,pfl,flower]

DIR holds the side-by-side scripts (bare/run.py, pfl/run.py, flower/run.py, common/fedbench_common.py); PY are the
interpreters of the peers' own environments. Each repeat runs every program once, one after the other (A B C A B C),
each process with one torch thread. A figure is the median over repeats of the steady round (median of rounds 2..);
memory is the peak PSS of the process tree, in runs of their own. ``l2`` is the norm of the final global model.
``--cpu`` measures the single-process programs in processor seconds instead (their ``time.time`` is replaced), for a
machine that is busy with something else.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import bench
from measure import measure

BARS = {"bare": 1.05, "pfl": 1.0, "flower": 0.85, "flower memory": 0.6}
PARITY = 1e-5
CPU = (
    "import runpy, sys, time; time.time = time.process_time; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


def main() -> None:
    """Run and print a table, the bars and a RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--python-pfl", default="")
    parser.add_argument("--python-flower", default="")
    parser.add_argument("--only", default="bare,pfl,flower", help="comma-separated")
    parser.add_argument("--arch", default="gpt")
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="processor seconds; for bare and pfl")
    a = parser.parse_args()
    job = ["--arch", a.arch, "--params", a.params, "--clients", a.clients, "--local-steps", a.local_steps]
    job = [str(v) for v in [*job, "--rounds", a.rounds, "--workers", 2]]
    wanted = a.only.split(",")
    ours = [sys.executable, bench.script("peer_task.py"), "--peers", a.peers, *job]
    commands = {
        "bare": [sys.executable, f"{a.peers}/bare/run.py", *job],
        "edgewise": [*ours, "--engine", "inproc"],
        "pfl": [a.python_pfl, f"{a.peers}/pfl/run.py", *job],
        "edgewise_pool": [*ours, "--engine", "pool"],
        "flower": [a.python_flower, f"{a.peers}/flower/run.py", *job],
    }
    if a.cpu:
        commands = {name: [c[0], "-c", CPU, *c[1:]] for name, c in commands.items()}
        wanted = [name for name in wanted if name != "flower"]
    keep = {
        "bare": "bare" in wanted,
        "edgewise": "bare" in wanted or "pfl" in wanted,
        "pfl": "pfl" in wanted and bool(a.python_pfl),
        "edgewise_pool": "flower" in wanted,
        "flower": "flower" in wanted and bool(a.python_flower),
    }
    runs = {name: (lambda c=command: bench.start(c)) for name, command in commands.items() if keep[name]}
    done = bench.interleave(a.repeats, **runs)
    memory: dict[str, float] = {}
    if not a.no_memory:
        for name in runs:
            bench.note(f"{name}: memory")
            memory[name] = measure(commands[name])["peak_pss_mb"]

    unit = "cpu s" if a.cpu else "s"
    print(f"\n{bench.machine()}; {' '.join(job)}")
    print(f"{'program':14} {f'steady round, {unit}':42} {'first, s':>8} {'set-up, s':>9} {'PSS, MiB':>9}  l2")
    steady = {name: [r["steady_round_s"] for r in results] for name, results in done.items()}
    for name, results in done.items():
        first = statistics.median(r["round_s"][0] for r in results)
        setup = statistics.median(r["setup_s"] for r in results)
        norms = sorted({r["l2"] for r in results})
        print(
            f"{name:14} {bench.spread(steady[name]):42} {first:8.2f} {setup:9.2f} {memory.get(name, 0):9.1f}  "
            f"{', '.join(map(str, norms))}"
        )
    print()
    figures: dict[str, float] = {}
    for key, mine, other in (
        ("bare", "edgewise", "bare"),
        ("pfl", "edgewise", "pfl"),
        ("flower", "edgewise_pool", "flower"),
    ):
        if mine not in done or other not in done:
            continue
        figures[key] = bench.ratio(steady[mine], steady[other])
        show(f"steady round, {mine} / {other}", bench.ratios(steady[mine], steady[other]), figures[key], BARS[key])
        if key == "flower" and memory:
            figures["flower_memory"] = memory[mine] / memory[other]
            bar = BARS["flower memory"]
            show(f"peak PSS, {mine} / {other}", f"{figures['flower_memory']:.3f}", figures["flower_memory"], bar)
    norms = [r["l2"] for results in done.values() for r in results]
    figures["parity"] = (max(norms) - min(norms)) / max(norms)
    show("parity of l2, relative", f"{figures['parity']:.2g}", figures["parity"], PARITY)
    if "edgewise" in done:
        for part in ("train_s", "encode_s", "aggregate_s"):
            print(f"  of edgewise's round: {part} {statistics.median(r[part] for r in done['edgewise']):.4f}")
    bench.say(**{k: round(v, 7) for k, v in figures.items()}, memory=memory, steady=steady)


def show(what: str, text: str, value: float, bar: float) -> None:
    """One bar and whether it is met."""
    print(f"{what}: {text}; bar {bar:g}: {bench.verdict(value, bar)}")


if __name__ == "__main__":
    main()
