#!/usr/bin/env python3
"""A retriever that is trained in rounds, against the frozen bundled model and BM25, on held-out questions.

    python benchmarks/federated_retrieval.py DATA --seeds 3

DATA has sgd/dialogues.jsonl.gz and mts-dialog/*.csv. Each phone has dialogues of its own and trains on pairs of a turn
and the next. Questions are the user's turns of 50 dialogues that no phone has, and the answers are what the assistant
says next, among all that it says in these dialogues. With --data mts each clinic has notes and their dialogues, and a
held-out note asks for its dialogue.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gzip
import json
import random
import statistics
import tempfile
import tomllib
from pathlib import Path
from typing import Any, cast

import torch

from edgewise import simulate
from edgewise.apps.cli.retrieve_commands import embedder
from edgewise.learn.retrieve import index as indexes
from edgewise.learn.retrieve.embed import Embedder
from edgewise.learn.retrieve.query import WAYS, search

PHONES, TRAINED, ASKED = 40, 2000, 50
CLINICS, OTHERS = 20, 400
FOUND = 100  # A passage that is found later counts as not found.
RECIPE: dict[str, dict[str, Any]] = {
    "model": {"base": "bundled"},
    "trainable": {"kind": "lora", "rule": "fedit", "rank": 64, "alpha": 64.0, "targets": ["embed_tokens"]},
    "data": {"source": "jsonl", "owner": "owner"},
    "round": {"rounds": 30, "sampling": "fixed", "cohort": 4},
    "training": {"lr": 2e-2, "local_steps": 20, "batch": 32},
    "strategy": {"kind": "fedavg"},
    "eval": {"every": 0, "devices": 4},
    "compare": {"local_only": False, "centralised": False},
}


def turns(data: Path) -> dict[str, list[list[str]]]:
    """Read the dialogues of each split of SGD, shuffled by a fixed seed."""
    found: dict[str, list[list[str]]] = {}
    with gzip.open(data / "sgd" / "dialogues.jsonl.gz", "rt", encoding="utf-8") as f:
        for row in map(json.loads, f):
            found.setdefault(row["split"], []).append([line[3:] for line in row["text"].split("\n")])
    for dialogues in found.values():
        random.Random(0).shuffle(dialogues)
    return found


def phones(data: Path, folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Write what phones train on. Return questions, passages, and the passage of each question."""
    split = turns(data)
    rows = [{"owner": f"phone-{i % PHONES:02}", "text": "\n".join(d)} for i, d in enumerate(split["train"][:TRAINED])]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = [(d[i], d[i + 1]) for d in split["test"][:ASKED] for i in range(0, len(d) - 1, 2)]
    passages = list(dict.fromkeys(p for _, p in pairs))  # The same words, said twice, are one passage.
    return [q for q, _ in pairs], passages, [passages.index(p) for _, p in pairs]


def clinics(data: Path, folder: Path) -> tuple[list[str], list[str], list[int]]:
    """Do the same for notes and dialogues. The dialogues of 400 training rows are passages too, and are not trained."""

    def rows(name: str) -> list[tuple[str, str]]:
        with (data / "mts-dialog" / name).open(encoding="utf-8", newline="") as f:
            return [(row["section_text"], " ".join(row["dialogue"].split())) for row in csv.DictReader(f)]

    asked, known = rows("ValidationSet.csv"), rows("TrainingSet.csv")
    written = [{"owner": f"clinic-{i % CLINICS:02}", "note": q, "text": p} for i, (q, p) in enumerate(known[OTHERS:])]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written), encoding="utf-8")
    return [q for q, _ in asked], [p for _, p in asked + known[:OTHERS]], list(range(len(asked)))


DATA = {
    "sgd": (phones, {"retriever.pairs": "turns", "data.sequence_len": 64}),
    "mts": (clinics, {"retriever.pairs": "rows", "data.prompt": "note", "data.sequence_len": 256}),
}
Row = tuple[float, float, float]


def measured(embed: Embedder, asked: tuple[list[str], list[str], list[int]]) -> dict[str, Row]:
    """Return recall@1, recall@5 and MRR of each way to search."""
    questions, passages, right = asked
    indexes.passages.__defaults__ = (1 << 30,)  # A text is one passage.
    documents = [indexes.IndexedText(str(i), text) for i, text in enumerate(passages)]
    index = indexes.read_index(indexes.build(documents, embed, "bundled"))
    found = {}
    vectors = dict(zip(questions, embed(questions), strict=True))

    def known(texts: list[str]) -> Any:
        return [vectors[text] for text in texts]

    for by in WAYS:
        ranks = []
        for question, i in zip(questions, right, strict=True):
            sources = [one.source for one in search(index, cast("Embedder", known), question, FOUND, by)]
            ranks.append(sources.index(str(i)) + 1 if str(i) in sources else 0)
        at1, at5 = (sum(0 < r <= k for r in ranks) / len(ranks) for k in (1, 5))
        found[by] = (at1, at5, sum(1 / r for r in ranks if r) / len(ranks))
    index.tables.close()
    return found


def made(seed: int, text: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Make the recipe of a seed."""
    plain: dict[str, Any] = {"name": "retriever", "seed": seed, "privacy": "none", **copy.deepcopy(RECIPE)}
    plain["data"]["path"] = str(text)
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        (plain.setdefault(section, {}) if section else plain)[name] = value
    return plain


def shown(name: str, rows: list[Row]) -> None:
    """Print the mean of each figure over seeds, and the range of recall@5."""
    mean = [statistics.mean(column) for column in zip(*rows, strict=True)]
    at5 = [row[1] for row in rows]
    spread = f"   recall@5 {min(at5):.3f} to {max(at5):.3f}, {len(rows)} seeds" if len(rows) > 1 else ""
    print(f"{name:28} {'   '.join(f'{x:.3f}' for x in mean)}{spread}", flush=True)


def main() -> None:
    """Measure the frozen model, train the seeds, measure each, and print the table."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", choices=DATA, default="sgd")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="of the recipe, as section.key=value in TOML")
    given = parser.parse_args()
    write, settings = DATA[given.data]
    for one in given.set:
        key, value = one.split("=", 1)
        settings |= {key: tomllib.loads(f"x = {value}")["x"]}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        asked = write(given.folder, folder)
        print(f"{len(asked[0])} questions, {len(asked[1])} passages: recall@1, recall@5, MRR")
        for pool in ("states", "tokens"):
            frozen = measured(embedder("bundled", pool), asked)
            if pool == "states":
                shown("BM25", [frozen["words"]])
            shown(f"frozen, {pool}", [frozen["meaning"]])
            shown(f"frozen, {pool}, and BM25", [frozen["both"]])
        trained: dict[str, list[Row]] = {"meaning": [], "both": []}
        for seed in range(given.seeds):
            recipe = made(seed, folder / "train.jsonl", settings)
            simulate(recipe, out=folder / f"run{seed}")
            found = measured(embedder(str(folder / f"run{seed}")), asked)
            for by, rows in trained.items():
                rows.append(found[by])
        shown("federated", trained["meaning"])
        shown("federated, and BM25", trained["both"])


if __name__ == "__main__":
    main()
