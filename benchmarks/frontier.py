"""Quality against bytes: the rungs of rungs.py on one task over several seeds, through the real engine.

    python benchmarks/frontier.py --task demo --out demo.jsonl [--rungs a,b,c] [--seeds 3] [--rounds N]
    python benchmarks/frontier.py --task shakespeare --data DIR --out plays.jsonl
    python benchmarks/frontier.py --plot demo.jsonl --png demo.png

Every finished (task, rung, seed) is one line of the file; what is there with the same settings is not played again, so
a stopped series goes on where it was. A run that fails is a line with its error, and is tried again the next time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from typing import Any

import bench
from rungs import RUNGS, Table, applied

os.environ.update({k: v for k, v in bench.QUIET.items() if k not in os.environ})
DEMO = bench.HERE.parent / "src" / "edgewise" / "assets" / "recipes" / "code.toml"
SPEAKERS, LEAST_CHARACTERS = 64, 5000  # of the plays: speakers with at least so many characters are devices
ROUNDS = {"demo": 6, "shakespeare": 12}
PLAYS = "plays"


def task(name: str, rounds: int, changes: Sequence[str] = ()) -> Table:
    """A task's recipe with ``weigh`` as its only stage; ``changes`` are ``section.key=value`` with TOML values."""
    if name == "demo":  # 17 packages of the standard library, all in every round
        plain = tomllib.loads(DEMO.read_text(encoding="utf-8"))
        del plain["merge"]  # every rung is to compose: updates are visible
        plain["privacy"] = "none"
        plain["training"] |= {"local_steps": 3, "batch": 4, "lr": 1e-3}
        plain["eval"] = {"every": 3, "max_tokens": 2048}
    else:  # 64 speakers of the plays, 8 of them in a round
        plain = {
            "schema": 1,
            "privacy": "none",
            "trainable": {"kind": "layers", "layers": ["model.layers.*"]},
            "data": {"source": "text", "path": PLAYS, "sequence_len": 64, "holdout": 0.1},
            "round": {"sampling": "fixed", "cohort": 8, "overselect": 1.0},
            "training": {"optimizer": "adamw", "lr": 2e-3, "local_steps": 5, "batch": 4},
            "strategy": {"kind": "fedavgm", "lr": 0.4, "momentum": 0.8, "nesterov": True},
            "eval": {"every": 4, "max_tokens": 2048},
        }
    plain["name"], plain["round"]["rounds"] = name, rounds
    plain["stage"], plain["simulation"] = [{"kind": "weigh"}], {}
    plain["compare"] = {"local_only": False, "centralised": False}
    for dotted, _, value in (change.partition("=") for change in changes):
        section, _, key = dotted.partition(".")
        plain[section] = {**plain.get(section, {}), key: tomllib.loads(f"x = {value}")["x"]}
    return plain


def speakers(text: str) -> dict[str, str]:
    """What each speaker says: a name on a line of its own ends with a colon, its speech ends at an empty line."""
    said: dict[str, list[str]] = {}
    for speech in text.split("\n\n"):
        name, _, words = speech.strip().partition("\n")
        if name.endswith(":") and words:
            said.setdefault(name[:-1], []).append(words)
    whole = {name: "\n\n".join(parts) + "\n" for name, parts in said.items()}
    return {name: words for name, words in whole.items() if len(words) >= LEAST_CHARACTERS}


def write_plays(data: Path, folder: Path) -> None:
    """One text file per speaker."""
    found = speakers((data / "shakespeare" / "input.txt").read_text(encoding="utf-8"))
    if len(found) != SPEAKERS:
        raise SystemExit(f"{len(found)} speakers have {LEAST_CHARACTERS} characters, {SPEAKERS} are expected")
    folder.mkdir()
    for name, words in found.items():
        (folder / f"{name}.txt").write_text(words, encoding="utf-8")


def play(plain: Table, recipe_dir: str) -> dict[str, Any]:
    """One run: cumulative megabytes and perplexity by round, and what it cost this machine."""
    from edgewise.apps.report import summary
    from edgewise.apps.simulate import simulation
    from edgewise.core.errors import EdgewiseError
    from edgewise.drivers.storage.run_store import RunStore
    from edgewise.plan.recipe import recipe

    began, cpu = time.perf_counter(), os.times().user
    with tempfile.TemporaryDirectory(prefix="frontier-run-") as folder:
        out = Path(folder) / "run"
        try:
            simulation.run(recipe.from_plain(plain), out=out, recipe_dir=Path(recipe_dir), report=False)
        except EdgewiseError as e:
            return {"error": f"{e.code}: {e.what}"}
        with RunStore(out) as store:
            s = summary.build(store)
    sent, received, rounds = 0.0, 0.0, []
    for r in s["per_round"]:
        sent, received = sent + r["bytes_up"], received + r["bytes_down"]
        rounds.append({"round": r["round"], "up": sent / s["population"], "down": received / s["population"]})
    return {
        "population": s["population"],
        "trainable": s["trainable"],
        "up_per_device_round": s["bytes"]["up_per_device_round"],
        "down_per_device_round": s["bytes"]["down_per_device_round"],
        "rounds": rounds,
        "curve": s["quality_for_bytes"],
        "model_sha256": s["model_sha256"],
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(os.times().user - cpu, 1),
    }


def sha(value: Any) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def read(path: Path) -> list[dict[str, Any]]:
    """The runs in a file; a last line that was cut off is not one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


def append(path: Path, record: dict[str, Any]) -> None:
    """Add one line, over what a killed writer left of its last one."""
    with path.open("ab+") as f:
        f.seek(0)
        whole = f.read()
        f.truncate(whole.rfind(b"\n") + 1)
        f.write(json.dumps(record).encode() + b"\n")
        f.flush()
        os.fsync(f.fileno())


def series(a: argparse.Namespace, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Play what is not in ``a.out`` yet; yields each new record. Seed by seed, so that a stopped series has all rungs.

    Runs stand beside each other, one process each, instead of devices within a run: importing torch costs seconds.
    """
    with tempfile.TemporaryDirectory(prefix="frontier-") as scratch:
        if a.task == "shakespeare":
            if a.data is None:
                raise SystemExit("--data DIR is needed: the folder that holds shakespeare/input.txt")
            write_plays(a.data, Path(scratch) / PLAYS)
        base = task(a.task, a.rounds or ROUNDS[a.task], a.set)
        done = {(r["settings"], r["seed"]) for r in read(a.out) if "error" not in r}
        with ProcessPoolExecutor(a.jobs, multiprocessing.get_context("spawn")) as pool:
            keys = {}
            for seed, name in product(range(a.seeds), names):
                plain = applied(base, RUNGS[name])
                key = {"task": a.task, "rung": name, "seed": seed, "base": sha(base), "settings": sha(plain)}
                if (key["settings"], seed) not in done:
                    keys[pool.submit(play, {**plain, "seed": seed}, scratch)] = key
            bench.note(f"{len(keys)} runs to play")
            for future in as_completed(keys):
                record = {**keys[future], **future.result()}
                append(a.out, record)
                yield record


def main() -> None:
    """Play or plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=ROUNDS)
    parser.add_argument("--rungs", default="", help="comma-separated names; all where left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=0, help=f"as a task's own: {ROUNDS}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs beside each other")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="of the task's recipe")
    parser.add_argument("--data", type=Path, help="folder that holds shakespeare/input.txt")
    parser.add_argument("--out", type=Path, help="JSONL file; what is in it is not played again")
    parser.add_argument("--plot", type=Path, help="draw such a file instead of playing")
    parser.add_argument("--png", type=Path, help="where to")
    a = parser.parse_args()
    if a.plot:
        import frontier_plot

        if not a.png:
            parser.error("--plot needs --png")
        frontier_plot.show(read(a.plot), a.png)
        return
    if not (a.task and a.out):
        parser.error("--task and --out are needed (or --plot and --png)")
    names = [n.strip() for n in a.rungs.split(",") if n.strip()] or list(RUNGS)
    if unknown := [n for n in names if n not in RUNGS]:
        parser.error(f"no rung is called {unknown[0]!r}; one of: {', '.join(RUNGS)}")
    for r in series(a, names):
        if "error" in r:
            bench.note(r["error"])
            continue
        first, last = r["curve"][0]["perplexity"], r["curve"][-1]["perplexity"]
        print(
            f"{r['rung']:24} seed {r['seed']}  {first:8.2f} -> {last:8.2f}  up {r['up_per_device_round'] / 1e3:9.2f} kB"
            f"  {r['wall_s']:6.1f} s wall  {r['cpu_s']:6.1f} s cpu",
            flush=True,
        )


if __name__ == "__main__":
    main()
