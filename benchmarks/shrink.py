"""Smaller models beside the dense one: perplexity, bytes and speed, healed by training.

    python benchmarks/shrink.py --heal 100 --out /tmp/shrink.md

The base is the bundled model, tuned on the plays first, because it was trained on other text. Healing takes as many
steps as the dense row took in addition, so the dense row has all the training of the others. Speeds are ratios to the
dense model in the same run.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch

from edgewise.apps.models.shrinking import ShrinkRequest, shrink, training_text
from edgewise.learn.compress.heal import HealingPlan, heal_model
from edgewise.learn.models.exported import copy_tokenizer
from edgewise.learn.models.load import load

ROWS = (
    ("prune", "magnitude"), ("prune", "wanda"), ("prune", "width"), ("prune", "depth"), ("factorize", "svd"),
    ("factorize", "svd-llm"), ("quantize", "int8"), ("quantize", "nf4"),
)  # fmt: skip


def main() -> None:
    """Tune the base, make it smaller in each way, and print a table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--tune", type=int, default=100)
    asked.add_argument("--heal", type=int, default=50)
    asked.add_argument("--to", type=float, default=0.5)
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp())
    bundled = load("bundled", Path())
    text = training_text(ShrinkRequest("bundled", "prune", given.to, place / "unused"), bundled)
    teacher = copy.deepcopy(bundled.model)
    for name, steps in (("tuned", given.tune), ("longer", given.heal)):
        heal_model(bundled.model, teacher, text.train_NS, HealingPlan(steps, distilled=0.0))
        bundled.model.save_pretrained(place / name)
        copy_tokenizer(bundled.folder, place / name)
    lines = [
        "| model | perplexity at once | healed | bytes of the files | share | tokens/s, dense = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)
        if given.out is not None:
            given.out.write_text("\n".join(lines) + "\n")

    for by, how in ROWS:
        steps = 0 if by == "quantize" else given.heal
        wanted = ShrinkRequest(str(place / "tuned"), by, given.to, place / how, how, healing=HealingPlan(steps))
        found = shrink(wanted)
        before, after = found["model"], found["smaller"]
        if how == "magnitude":
            longer = shrink(ShrinkRequest(str(place / "longer"), "quantize", 0.5, place / "x", "int8"))["model"]
            add(f"| dense | {before['perplexity']:.1f} | {longer['perplexity']:.1f} | {before['bytes']:,} | 1 | 1 |")
        at_once = found.get("cut_perplexity", after["perplexity"])
        healed = f"{after['perplexity']:.1f}" if steps else "-"
        speed = after["tokens_per_s"] / before["tokens_per_s"]
        share = after["bytes"] / before["bytes"]
        add(f"| {by}, {how} | {at_once:.1f} | {healed} | {after['bytes']:,} | {share:.2f} | {speed:.2f} |")


if __name__ == "__main__":
    main()
