"""Time of the dashboard's largest pages: a run with many rounds, and a list of many runs.

    python benchmarks/dashboard.py [--rounds 100000] [--runs 1000] [--repeat 5]

A page is timed from the request to the last byte of the answer, over TLS on loopback, rendered by the server. The
reference of the run's page is the bare reading of the same rows with sqlite3, and that of the list is the opening of
as many databases, in the same process and the same run. The first view of the list reads each run's database; later
ones remember runs that have ended.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import httpx2

from edgewise.apps.server import submission
from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import served
from edgewise.drivers.http import certificates

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from shown_runs import login, member, shown_run, write_run


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bare(path: Path, query: str) -> None:
    """Read rows with sqlite3 alone."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as c:
        c.execute(query).fetchall()


def main() -> None:
    """Print one line for each page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, HttpServer(Path(folder) / "server") as server:
        cookie = {"cookie": f"__Host-edgewise={login(server, member(server, 'me', 'viewer'))}"}
        run = shown_run(server, "long", served.RUNNING, args.rounds, 2 * args.rounds)
        database = submission.folder(server.service, run) / "run.db"
        write_run(Path(folder), "template", "one of many", 20)
        others = []
        for seed in range(1, args.runs):
            other = shown_run(server, f"run {seed}", served.FINISHED, 0, 20, seed=seed)
            place = submission.folder(server.service, other) / "run.db"
            shutil.copyfile(Path(folder) / "run.db", place)
            others.append(place)
        context = certificates.client_context(server.service.authority)
        with httpx2.Client(base_url=server.url, verify=context, headers=cookie, timeout=60.0) as http:

            def page(path: str) -> int:
                answer = http.get(f"/dashboard{path}")
                answer.raise_for_status()
                return len(answer.content)

            page("/audit")  # connection and templates
            first = {"runs, first": timed(lambda: page("/runs")), "rounds": timed(lambda: page(f"/runs/{run}"))}
            query = "SELECT body FROM events WHERE kind IN ('round_finished', 'round_started') ORDER BY number"
            opening = "SELECT next_round FROM runs"
            rows = {
                f"{args.rounds:,} rounds, first view": (f"/runs/{run}", lambda: bare(database, query)),
                f"{args.rounds:,} rounds, JSON, later": (f"/runs/{run}.json", lambda: bare(database, query)),
                f"{args.runs:,} runs, first view": (
                    "",
                    lambda: [bare(one, opening) for one in others],
                ),
                f"{args.runs:,} runs, later views": ("/runs", lambda: None),
            }
            print(f"load {os.getloadavg()[0]:.1f}")
            for name, (path, reference) in rows.items():
                pairs = [(timed(lambda p=path: page(p)), timed(reference)) for _ in range(args.repeat)]
                begun = first["rounds" if "rounds" in name else "runs, first"]
                took = begun if "first" in name else median(a for a, _ in pairs)
                base = median(b for _, b in pairs)
                ratio = f"{took / base:.1f} x the bare reading ({base:.3f} s)" if base > 1e-3 else ""
                size = page(path or "/runs")
                print(f"{name:32} {took:7.3f} s  {size / 1e3:8.1f} kB  {ratio}")


if __name__ == "__main__":
    main()
