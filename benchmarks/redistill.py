"""Compare five rounds with distillation after each with the same rounds without, from a distilled baseline.

    python benchmarks/redistill.py --work /tmp/redistill         # in pieces: each call goes on where the last ended

    1. A teacher learns public text, and a student of it is distilled until 100 more steps, and a tenth more steps, each
       lower its perplexity by less than 0.5 %. Their rate is that of the last piece. That student is the baseline.
    2. Devices train it for five rounds, with and without ``[distill]``, from the same seed.

The figures are perplexities on held-out public text and on the devices' held-out text. A piece that is done stands in
``figures.json`` of the folder and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch

import edgewise
from edgewise.apps.models.distilling import DistillRequest, distil_to_folder
from edgewise.learn.compress.teaching import Lesson

ON, LENGTH, ROUNDS, LEAST = "plays-public", 64, 5, 0.005


def piece(work: Path, name: str, begin: str, steps: int, rate: float, **more: Any) -> dict[str, Any]:
    """Distil one piece from the folder ``begin``, or from a size."""
    lesson = Lesson("logits", steps, rate)
    to = str(work / begin) if (work / begin).is_dir() else begin
    teacher = str(work / "teacher") if (work / "teacher").is_dir() else "bundled"
    wanted = DistillRequest(teacher, to, ON, work / name, lesson, length=LENGTH, **more)
    found = distil_to_folder(wanted)["student"]
    return {"steps": steps, "rate": rate, "before": found["perplexity_before"], "after": found["perplexity"]}


def baseline(asked: argparse.Namespace, known: dict[str, Any]) -> bool:
    """Add one piece to the baseline, and measure what more steps give. Returns whether it is converged."""
    pieces = known.setdefault("pieces", [])
    number, work = len(pieces), asked.work
    rate = asked.rate / 2**number
    if number == 0:
        more = {"adapt": asked.adapt, "adapt_lr": 1e-3, "teacher_dest": work / "teacher"}
        pieces.append(piece(work, "student-0", asked.to, asked.steps, rate, **more))
    else:
        pieces.append(piece(work, f"student-{number}", f"student-{number - 1}", asked.steps, rate))
    done = sum(one["steps"] for one in pieces)
    for name, steps in (("hundred_more", 100), ("tenth_more", max(1, done // 10))):
        found = piece(work, f"{name}-{number}", f"student-{number}", steps, rate)
        pieces[-1][name] = 1 - found["after"] / found["before"]
        pieces[-1][f"{name}_perplexity"] = found["after"]
    known["steps"] = done
    return all(pieces[-1][name] < LEAST for name in ("hundred_more", "tenth_more"))


def federated(asked: argparse.Namespace, student: Path, seed: int, with_distillation: bool) -> dict[str, Any]:
    """Play the rounds, and measure the model on public text and on the devices' text."""
    recipe: dict[str, Any] = {
        "name": "redistill", "privacy": "none", "seed": seed, "model": {"base": str(student)},
        "data": {"source": "plays", "sequence_len": LENGTH, "max_tokens": 2000},
        "round": {"rounds": ROUNDS, "sampling": "all"},
        "training": {"lr": 1e-3, "local_steps": 3, "batch": 4},
        "eval": {"every": 0, "max_tokens": 640}, "compare": {"local_only": False, "centralised": False},
    }  # fmt: skip
    if with_distillation:
        recipe["distill"] = {
            "every": 1, "teacher": str(asked.work / "teacher"), "public": ON, "steps": asked.again,
            "adapt": asked.again // 2, "lr": asked.again_rate,
        }  # fmt: skip
    out = asked.work / f"run-{seed}-{'with' if with_distillation else 'without'}"
    run = edgewise.simulate(recipe, out=out)
    run.export(out / "merged")
    public = distil_to_folder(DistillRequest(str(asked.work / "teacher"), str(out / "merged"), ON, out / "one",
                                   Lesson(steps=1), length=LENGTH))["student"]["perplexity_before"]  # fmt: skip
    held = run.summary["perplexity"]
    return {
        "devices": held["federated"]["weighted_mean"], "devices_before": held["base"]["weighted_mean"],
        "public": public, "kept": sum(one["kept"] for one in run.summary["distillations"]),
    }  # fmt: skip


def main() -> None:
    """Do one piece that is not done yet, for at most so many seconds before another is begun."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", default="500K")
    parser.add_argument("--steps", type=int, default=300, help="of a piece of the baseline")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--adapt", type=int, default=300, help="steps of the teacher on public text")
    parser.add_argument("--again", type=int, default=40, help="steps of the student in each round's distillation")
    parser.add_argument("--again-rate", type=float, default=5e-4)
    parser.add_argument("--most", type=int, default=6, help="pieces of the baseline")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=math.inf)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path, began = asked.work / "figures.json", time.monotonic()
    asked.work.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def save() -> bool:
        """Keep the figures. Returns whether there is time for another piece."""
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
        return time.monotonic() - began < asked.seconds

    while not known.get("converged") and len(known.get("pieces", ())) < asked.most:
        known["converged"] = baseline(asked, known)
        if not save():
            return
    student = asked.work / f"student-{len(known['pieces']) - 1}"
    for seed in asked.seeds:
        for with_distillation in (False, True):
            name = f"{seed} {'with' if with_distillation else 'without'}"
            if name not in known:
                known[name] = {**federated(asked, student, seed, with_distillation), "load": os.getloadavg()[0]}
                if not save():
                    return
    print(json.dumps(known, indent=1))


if __name__ == "__main__":
    main()
