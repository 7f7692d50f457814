#!/usr/bin/env python3
"""Intents of households that have their own names for things and people: base, alone, federated, personal.

    python benchmarks/intents.py CLINC_FOLDER [--seeds 0,1,2] [--rounds 30] [--out FOLDER]

CLINC_FOLDER has data_full.json of CLINC150 (Larson et al. 2019). Sixteen intents of home, car and telephone. The vendor
trains the bundled model on the split ``val`` as it is. The split ``train`` is dealt out to 20 households, and ``test``
to be held out. In a household's sentences the words for devices and people are its own nicknames, made-up words that
no other household has. Devices train adapters of rank 8 on their sentences, masked and in 8 bits. The model answers by
the likeliest of the sixteen names. Accuracy is over held-out sentences with a nickname.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

import edgewise as ew
from edgewise.apps.federation.playing import has_run
from edgewise.learn.models.load import locate_model
from edgewise.learn.models.scoring import likeliest_answer
from edgewise.learn.text.evaluation_rows import EvaluationRow
from edgewise.learn.text.tokens import load_tokenizer

INTENTS = (
    "sync_device", "find_phone", "smart_home", "jump_start", "schedule_maintenance", "last_maintenance",
    "tire_pressure", "make_call", "text", "share_location", "change_volume", "play_music", "reminder",
    "shopping_list_update", "calendar", "todo_list",
)  # fmt: skip
NAMES = tuple(intent.replace("_", " ") for intent in INTENTS)
SLOTS = {
    "phone": r"(?:cell ?phone|phone|iphone|cell)", "lights": r"(?:lights?|lamp)", "car": r"(?:car|vehicle|truck)",
    "player": r"(?:tv|television|speakers?|stereo|radio)", "climate": r"(?:thermostat|ac|air conditioner|heat)",
    "parent": r"(?:mom|mother|dad|father)", "friend": r"(?:wife|husband|brother|sister|friend|john|jim|bob|sarah|mary)",
}  # fmt: skip
OWNED = {slot: re.compile(rf"\b(?:(?:my|the) )?{words}\b") for slot, words in SLOTS.items()}
HOMES, HELD = 20, 20
SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def nicknames(draw: np.random.Generator, taken: set[str]) -> dict[str, str]:
    """Make up a word for each slot, of three syllables, that no household has."""
    found = {}
    for slot in SLOTS:
        word = next(w for w in iter(lambda: "".join(draw.choice(SYLLABLES, 3)), None) if w not in taken)
        taken.add(word)
        found[slot] = word
    return found


def nicknamed(sentence: str, own: dict[str, str]) -> str:
    """Put a household's words in place of the words for its things and people."""
    for slot, pattern in OWNED.items():
        sentence = pattern.sub(own[slot], sentence)
    return sentence


def households(splits: dict[str, Any], seed: int) -> tuple[dict[str, list[dict[str, str]]], set[str]]:
    """Deal out the sentences: home -> rows, the last ``HELD`` of them held out; and all nicknames."""
    draw, taken = np.random.default_rng(seed), set[str]()
    own = {f"home-{i:02}": nicknames(draw, taken) for i in range(HOMES)}
    rows: dict[str, list[dict[str, str]]] = {home: [] for home in own}
    for split in ("train", "test"):
        found = [(text, intent) for text, intent in splits[split] if intent in INTENTS]
        if split == "test":  # Sentences with a slot come first, so that most of what is held out has a nickname.
            found.sort(key=lambda row: not any(pattern.search(row[0]) for pattern in OWNED.values()))
            found = found[: HOMES * HELD]
        order = draw.permutation(len(found))
        for k, at in enumerate(order[: len(order) // HOMES * HOMES]):
            home = f"home-{k % HOMES:02}"
            text, intent = found[at]
            name = NAMES[INTENTS.index(intent)]
            rows[home].append({"prompt": nicknamed(text, own[home]), "text": f" {name}"})
    return rows, taken


def accuracy(words: set[str], tokens: Any) -> Any:
    """Make the metric: the share of held-out sentences with one of these words whose likeliest answer is right."""

    def metric(model: Any, held: Any) -> float:
        rows = [p for p in held if words & set(p.prompt.split())]
        found = [
            likeliest_answer(model, tokens, EvaluationRow("row", "home", {}, prompt=p.prompt, choices=NAMES))
            for p in rows
        ]
        right = [NAMES[first] == p.text.strip() for (first, _), p in zip(found, rows, strict=True)]
        return fmean(right) if right else 0.0

    return metric


def vendor(splits: dict[str, Any], seed: int, out: Path) -> Path:
    """Train the vendor's model on sentences without nicknames, and export it. Returns its folder."""
    dest = out.with_name(f"{out.name}-model")
    if dest.exists():
        return dest
    rows = [
        {"prompt": text, "text": f" {NAMES[INTENTS.index(intent)]}"}
        for text, intent in splits["val"] if intent in INTENTS
    ]  # fmt: skip
    np.random.default_rng(seed).shuffle(rows)
    recipe = ew.Recipe(
        name="vendor", seed=seed, privacy="none", trainable={"kind": "full"},
        data={"prompt": "prompt", "text": "text", "sequence_len": 32, "packing": "none", "holdout": 0.05},
        round={"rounds": 1}, training={"lr": 1e-3, "local_steps": 300, "batch": 16}, eval={"every": 0},
        compare={"local_only": False, "centralised": False},
    )  # fmt: skip
    run = ew.Federation(recipe, data={"vendor": rows}).run(out, resume=has_run(out), progress=False)
    return run.export(dest)


def main() -> None:
    """Play each seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--out", type=Path, help="folder of the runs")
    given = parser.parse_args()
    splits = json.loads((given.folder / "data_full.json").read_text())
    tokens = load_tokenizer(locate_model("bundled", Path())[0])
    with tempfile.TemporaryDirectory() as scratch:
        for seed in map(int, given.seeds.split(",")):
            out = (given.out or Path(scratch)) / f"seed-{seed}"
            base = vendor(splits, seed, out / "vendor")
            rows, words = households(splits, seed)
            recipe = ew.Recipe(
                name="intents", seed=seed, privacy="hidden", trainable={"kind": "lora", "rank": 8, "alpha": 16.0},
                data={"prompt": "prompt", "text": "text", "sequence_len": 32, "packing": "none",
                      "holdout": HELD / len(rows["home-00"])},
                round={"rounds": given.rounds}, training={"lr": given.lr, "local_steps": 4, "batch": 16},
                eval={"every": 0}, personal={"method": "fine_tune", "steps": 40},
                compare={"local_only": True, "centralised": False},
            )  # fmt: skip
            metrics = {"nicknamed": accuracy(words, tokens)}
            fed = ew.Federation(recipe, model=str(base), data=rows, metrics=metrics)
            run = fed.run(out / "run", resume=has_run(out / "run"), progress=False)
            s = run.summary
            for name in metrics:
                last = {m["model"]: m["mean"] for m in s["simulator_metrics"] if m["name"] == name}
                print(seed, name, {k: round(v, 4) for k, v in last.items()}, flush=True)
            print("bytes", s["bytes"]["up_per_device_round"], s["bytes"]["down_per_device_round"], flush=True)


if __name__ == "__main__":
    main()
