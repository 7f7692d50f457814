"""Enrolled devices beside the deployment engines of Flower and NVFlare: the same job, machine and minutes.

    python benchmarks/deployment_engines.py --peers DIR --python-flower PY --python-nvflare PY [--repeats 3]

DIR holds the side-by-side scripts (common/fedbench_common.py, nvflare/client.py). PY are the interpreters of the peers'
own environments. Each program starts a server and a process a device on loopback, one torch thread each: edgewise over
TLS with signed requests and durable, sealed frames, Flower without TLS, NVFlare in its proof-of-concept mode. Each
repeat runs every program once. A figure is the median of the steady rounds (2..) and the peak of the proportional set
sizes of all processes. ``l2`` is the norm of the final model, which must agree.
"""

from __future__ import annotations

import argparse
import statistics
import sys

import bench
from measure import measure

KEYS = ("steady_round_s", "peak_pss_mb", "l2")


def main() -> None:
    """Run, and print a table and a RESULT line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--python-flower", default="")
    parser.add_argument("--python-nvflare", default="")
    parser.add_argument("--arch", default="gpt")
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--local-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=1)
    a = parser.parse_args()
    job = ["--arch", a.arch, "--params", a.params, "--clients", a.clients, "--local-steps", a.local_steps]
    job = [str(v) for v in ["--peers", a.peers, *job, "--rounds", a.rounds]]
    programs = {"edgewise": (sys.executable, "network_task.py")}
    programs |= {"flower": (a.python_flower, "flower_network.py")} if a.python_flower else {}
    programs |= {"nvflare": (a.python_nvflare, "nvflare_network.py")} if a.python_nvflare else {}
    found: dict[str, list[dict[str, object]]] = {name: [] for name in programs}
    for i in range(a.repeats):
        for name, (python, program) in programs.items():
            bench.note(f"{name}, {i + 1} of {a.repeats}")
            found[name].append(measure([python, bench.script(program), *job], every_s=1.0))
    table = {
        name: {key: statistics.median(float(str(line[key])) for line in lines) for key in KEYS}
        for name, lines in found.items()
    }
    print(f"{'':12}{'steady round':>14}{'first round':>14}{'memory':>12}{'|model|':>14}")
    for name, row in table.items():
        first = statistics.median(line["round_s"][0] for line in found[name])  # type: ignore[index]
        row["first_round_s"] = first
        print(
            f"{name:12}{row['steady_round_s']:>12.2f} s{first:>12.2f} s{row['peak_pss_mb']:>9.0f} MB{row['l2']:>14.5f}"
        )
    ours = table["edgewise"]
    for name, row in table.items():
        if name != "edgewise":
            print(f"{name}: round {ours['steady_round_s'] / row['steady_round_s']:.3f} x, "
                  f"memory {ours['peak_pss_mb'] / row['peak_pss_mb']:.3f} x")  # fmt: skip
    bench.say(**table)


if __name__ == "__main__":
    main()
