"""Personal models against the federated model and training alone: median and worst tenth of devices, over seeds.

    python benchmarks/personal.py [--data DIR] [--tasks plays,clinc,sgd] [--seeds 3] [--out FILE]

plays: the demo (24 characters, of which 12 are measured). clinc: the ten domains of CLINC150, a device each. sgd: ten
services of SGD, the dialogues with each on one device. Tasks without data under DIR are left out. Steps, rate and
weight are those of the demo's recipe on all tasks; they were chosen on other characters. ``fine_tune`` is the same
training with weight 1, so it costs a measurement only. ``chosen`` is interpolate with weight = 0: each device chooses.

Bar: median and worst tenth of the personal models are better than those of the federated model and of each device
alone. Beside it stands each device alone with the steps of rounds and personal model together.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench
import numpy as np

from edgewise.apps.report import quality
from edgewise.apps.simulate import simulation
from edgewise.apps.simulate.measuring import Measuring
from edgewise.core import vector
from edgewise.core.vector import Vector
from edgewise.drivers.storage.personal_models import personal_models
from edgewise.drivers.storage.run_store import RunStore
from edgewise.drivers.workers import jobs
from edgewise.learn.text.trainer import make
from edgewise.plan.recipe.recipe import Recipe, from_plain

PLAYS = bench.HERE.parent / "src" / "edgewise" / "assets" / "recipes" / "plays.toml"
ROWS = ("base", "local_only", "local_personal", "federated", "fine_tune", "interpolate", "chosen")
PERSONAL = ROWS[4:]
FIGURES = ("median", "worst_decile")
SERVICES = (
    "Restaurants_1", "Flights_1", "Movies_1", "Homes_1", "Music_2", "Buses_1", "Banks_1", "RentalCars_1", "Calendar_1",
    "Services_1",
)  # fmt: skip


def clinc(data: Path) -> Iterator[tuple[str, str]]:
    """(domain, sentence), the intents of a domain in turn, so that the held-out end has all of them."""
    domains = json.loads((data / "clinc150" / "domains.json").read_text())
    by: dict[str, list[str]] = defaultdict(list)
    for text, intent in json.loads((data / "clinc150" / "data_full.json").read_text())["train"]:
        by[intent].append(text)
    for domain, intents in domains.items():
        for texts in zip(*(by[intent] for intent in intents), strict=False):
            yield from ((domain, text) for text in texts)


def sgd(data: Path) -> Iterator[tuple[str, str]]:
    """(service, dialogue) of dialogues with one service."""
    with gzip.open(data / "sgd" / "dialogues.jsonl.gz", "rt", encoding="utf-8") as f:
        for line in f:
            row = json.loads(line)
            if len(row["services"]) == 1 and row["services"][0] in SERVICES:
                yield row["services"][0], row["text"]


TASKS = {"plays": None, "clinc": clinc, "sgd": sgd}


def recipe(task: str, seed: int, rows: Path) -> dict[str, Any]:
    """The demo's recipe on a task, without the parts that this benchmark does not need."""
    plain = tomllib.loads(PLAYS.read_text(encoding="utf-8"))
    plain |= {"name": f"personal-{task}", "seed": seed, "report": {}}
    plain["compare"] = {"local_only": True, "centralised": False}
    plain["eval"] = {"every": 0, "max_tokens": 320, "devices": 12}
    if task != "plays":
        plain["data"] = {
            "source": "jsonl", "path": str(rows), "owner": "owner", "text": "text", "sequence_len": 64,
            "max_tokens": 2000,
        }  # fmt: skip
    return plain


def measured(task: str, seed: int, data: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Play a task, and return the figures of each model."""
    rows = folder / "rows.jsonl"
    if (read := TASKS[task]) is not None:
        lines = (json.dumps({"owner": owner, "text": text}) for owner, text in read(data))
        rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
    made = from_plain(recipe(task, seed, rows))
    out = folder / "run"
    simulation.run(made, out=out, recipe_dir=folder, report=False)
    names = ("base", "local_only", "local_personal", "federated", "personal")
    with RunStore(out) as store:
        each = {name: store.measures(name) for name in names}
        w = store.blob(store.models()[made.round.rounds])
    each["interpolate"] = each.pop("personal")
    share, tuned = np.float32(made.personal.weight), {}
    trainer = make(made, folder, out / "cache")
    for model in personal_models(out):
        done = trainer.evaluate(model.device, w + (model.params - w) / share)
        tuned[model.device] = (done.nll, done.tokens)
    each["fine_tune"] = tuned
    each["chosen"] = choosing(made, folder, w)
    found = {name: quality.figures(each[name]) for name in ROWS}
    nats = {name: {d: nll / tokens for d, (nll, tokens) in each[name].items()} for name in ROWS}
    for name in PERSONAL:
        own = nats[name]
        found[name]["both"] = statistics.fmean(own[d] < min(nats["federated"][d], nats["local_only"][d]) for d in own)
    return found


def choosing(made: Recipe, folder: Path, w: Vector) -> dict[str, tuple[float, int]]:
    """Measure personal models whose devices choose the weight."""
    plain = made.resolved()
    plain["personal"]["weight"] = 0.0
    found = {}
    with Measuring(from_plain(plain), folder, folder / "measuring") as here:
        for device in here.probes.devices:
            here.executor.submit(jobs.Personalise(device=device, params=vector.to_bytes(w)))
            done = here.executor.result()
            assert isinstance(done, jobs.Personalised), done
            found[device] = done.own
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="lines of results; those that are there are not measured again")
    given = parser.parse_args()
    known = (
        [json.loads(line) for line in given.out.read_text().splitlines()] if given.out and given.out.exists() else []
    )
    rows = list(known)
    for seed in range(given.seeds):
        for task in given.tasks.split(","):
            need = {"clinc": "clinc150", "sgd": "sgd"}.get(task, "")
            if need and not (given.data / need).is_dir():
                print(f"{task}: no {given.data / need}, left out")
                continue
            if any((row["task"], row["seed"]) == (task, seed) for row in known):
                continue
            with tempfile.TemporaryDirectory() as folder:
                row = {"task": task, "seed": seed, "models": measured(task, seed, given.data, Path(folder))}
            rows.append(row)
            shown = {m: [round(row["models"][m][f], 1) for f in FIGURES] for m in ROWS}
            print(json.dumps({"task": task, "seed": seed, **shown}), flush=True)
            if given.out:
                with open(given.out, "a", encoding="utf-8") as f:
                    f.write(json.dumps(row) + "\n")
    result = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        print(f"\n{task}: perplexity, mean over seeds {[r['seed'] for r in rows if r['task'] == task]}")
        each = [row["models"] for row in rows if row["task"] == task]
        for model in ROWS:
            values = {f: statistics.fmean(m[model][f] for m in each) for f in FIGURES}
            both = [m[model]["both"] for m in each if "both" in m[model]]
            shown = f"  better than both on {100 * statistics.fmean(both):.0f} %" if both else ""
            print(f"  {model:15} median {values['median']:7.1f}  worst tenth {values['worst_decile']:7.1f}{shown}")
        others = ("base", "local_only", "federated")
        wins = {p: all(m[p][f] < min(m[name][f] for name in others) for m in each for f in FIGURES) for p in PERSONAL}
        result[task] = wins
        print(f"  better than all of {', '.join(others)} for both figures in every seed: {wins}")
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
