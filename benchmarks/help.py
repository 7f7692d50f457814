"""How long ``edgewise --help`` takes, and that it imports neither torch nor transformers.

python benchmarks/help.py [--repeats 15]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import bench

BAR = 0.3
HEAVY = ("torch", "transformers", "peft", "numba", "numpy", "sqlalchemy", "matplotlib")
PROBE = (
    "import sys\nfrom edgewise.apps.cli.main import main\nsys.argv = ['edgewise', '--help']\n"
    "try:\n    main()\nexcept SystemExit:\n    pass\n"
    f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
)


def main() -> None:
    """Time it and print the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    a = parser.parse_args()
    command = [str(Path(sys.executable).with_name("edgewise")), "--help"]
    bare = [sys.executable, "-c", "pass"]
    environment = {**os.environ, **bench.QUIET}
    took: dict[str, list[float]] = {"help": [], "python": []}
    for _ in range(a.repeats):
        for name, what in (("help", command), ("python", bare)):
            began = time.perf_counter()
            subprocess.run(what, env=environment, check=True, capture_output=True)
            took[name].append(time.perf_counter() - began)
    probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, check=True, capture_output=True, text=True)
    imported = probe.stderr.strip().splitlines()[-1]
    median = sorted(took["help"])[len(took["help"]) // 2]
    print(bench.machine())
    print(f"edgewise --help {bench.spread(took['help'])} s; python -c pass {bench.spread(took['python'])} s")
    print(f"of {', '.join(HEAVY)} it imports: {imported}")
    met = bench.verdict(median, BAR) if "torch" not in imported else "MISSED: torch is imported"
    print(f"bar {BAR} s, no torch: {met}")
    bench.say(help_s=round(median, 4), imported=imported)


if __name__ == "__main__":
    main()
