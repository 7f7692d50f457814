"""All benchmarks, one after the other, each as soon as the machine is calm; their output goes to one text file.

python benchmarks/run_all.py --out results.txt [--peers DIR --python-pfl PY --python-flower PY] [--load 1.3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import bench


def main() -> None:
    """Run everything; a failed program is noted and the next one goes on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results.txt")
    parser.add_argument("--peers", default="")
    parser.add_argument("--python-pfl", default="")
    parser.add_argument("--python-flower", default="")
    parser.add_argument(
        "--load", type=float, default=1.3, help="start a program when the one-minute load is below this"
    )
    parser.add_argument("--patience", type=float, default=900.0, help="seconds after which it starts regardless")
    parser.add_argument("--skip", default="demo", help="comma-separated names")
    a = parser.parse_args()
    programs = [
        ["help.py"],
        ["engine_cost.py"],
        ["engine_cost.py", "--bits", "4"],
        ["codecs.py"],
        ["hot_paths.py"],
        ["hot_paths.py", "--memory"],
        ["pool.py"],
        ["generation.py"],
        ["gguf_files.py"],
        ["memory.py"],
        ["resume_memory.py"],
        ["transport.py"],
        ["gateway.py"],
        ["demo.py"],
        ["demo.py", "code"],
    ]
    if a.peers:
        side = ["--peers", a.peers, "--python-pfl", a.python_pfl, "--python-flower", a.python_flower]
        programs.insert(3, ["peers.py", *side])
    skipped = {f"{name}.py" for name in a.skip.split(",")}
    with Path(a.out).open("a") as f:
        for name, *rest in (p for p in programs if p[0] not in skipped):
            began = time.monotonic()
            while os.getloadavg()[0] >= a.load and time.monotonic() - began < a.patience:
                time.sleep(5)
            stamp = f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, load before {os.getloadavg()[0]:.2f}"
            bench.note(name)
            done = subprocess.run(
                [sys.executable, bench.script(name), *rest],
                env={**os.environ, **bench.QUIET},
                capture_output=True,
                text=True,
            )
            f.write(f"== {name} ({stamp}) exit {done.returncode}\n{done.stdout}{done.stderr}\n")
            f.flush()


if __name__ == "__main__":
    main()
