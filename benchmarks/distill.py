"""Compare a distilled student with the same student trained on the text alone, at equal steps.

    python benchmarks/distill.py --seeds 0 1 2 --steps 120 --append figures.jsonl
    python benchmarks/distill.py --teacher models/teacher --to 4M --on notes/

Both students begin with the same weights and read the same blocks in the same order. The figure of a seed is the ratio
of their perplexities on held-out text (below 1: distillation is better). With ``--append`` a seed that stands in the
file is not measured again, so a long comparison can be done in pieces.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from edgewise.core.keys import derive, root
from edgewise.learn.compress import student, teaching
from edgewise.learn.compress.teaching import DATA, LOSSES, Lesson
from edgewise.learn.models.load import load
from edgewise.learn.text import corpus
from edgewise.learn.text.blocks import BlockStore
from edgewise.plan.recipe.whole_text import whole_text

HELD_BLOCKS = 150


def measured(asked: argparse.Namespace, seed: int, cache: Path) -> dict[str, Any]:
    """Train both students of a seed and score them."""
    key, section = root(seed), whole_text(asked.on, {}, asked.length)
    teacher = load(asked.teacher, Path())
    teacher.model.requires_grad_(False)
    found = corpus.load(section, Path(), cache, derive(key, "data"))
    text = BlockStore(found, teacher.tokens, section, cache).open(found.devices[0])
    held_NS = text.held_NS[:: -(-len(text.held_NS) // HELD_BLOCKS)]

    def perplexity(model: torch.nn.Module) -> float:
        held = teaching.measure_student(model, held_NS)
        return math.exp(held.nll / held.tokens)

    figures: dict[str, Any] = {"seed": seed, **setting(asked), "teacher": perplexity(teacher.model)}
    for name, loss in (("alone", DATA), ("distilled", asked.loss)):
        one = student.make_student(teacher, asked.to, Path(), key)
        figures |= {"origin": one.origin, "parameters": sum(p.numel() for p in one.model.parameters())}
        lesson = Lesson(loss, asked.steps, asked.rate, asked.batch, asked.tau, data=asked.data)
        begun = time.perf_counter()
        teaching.teach_student(one.model, None if loss == DATA else teacher.model, text.train_NS, lesson, key)
        figures |= {name: perplexity(one.model), f"{name}_s": round(time.perf_counter() - begun, 1)}
    return {**figures, "ratio": figures["distilled"] / figures["alone"], "load": os.getloadavg()[0]}


def setting(asked: argparse.Namespace) -> dict[str, Any]:
    """Return everything but the seed that decides a figure."""
    return {key: value for key, value in vars(asked).items() if key not in ("seeds", "append")}


def main() -> None:
    """Measure the seeds that are missing, and print one JSON line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="bundled")
    parser.add_argument("--to", default="1M")
    parser.add_argument("--on", default="python-stdlib")
    parser.add_argument("--loss", choices=LOSSES, default="logits")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--tau", type=float, default=2.0)
    parser.add_argument("--data", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--append", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    before: list[dict[str, Any]] = []
    if asked.append and asked.append.is_file():
        before = [json.loads(line) for line in asked.append.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as cache:
        for seed in asked.seeds:
            wanted = {"seed": seed, **setting(asked)}
            if any(wanted.items() <= one.items() for one in before):
                continue
            line = json.dumps(measured(asked, seed, Path(cache)))
            print(line, flush=True)
            if asked.append:
                with asked.append.open("a", encoding="utf-8") as f:
                    f.write(line + "\n")


if __name__ == "__main__":
    main()
