"""Peak memory of a process that plays a round with one device, beside the forecast from the model's configuration.

    python benchmarks/device_memory.py [--sizes 100,600] [--limit-mb 4096] [--quantize none] [--checkpointing]
    python benchmarks/device_memory.py --sizes bundled --limit-mb 1024

Llamas of random weights (100 or 600 million), stored in bfloat16, LoRA, one block a step. ``bundled`` trains the whole
bundled model with top-k of 0.2 %. Each trains some steps and evaluates in a process of its own under RLIMIT_DATA, and
then plays a whole round there, with the server and its vectors in the process. The peak is VmHWM less the resident set
before, after a run of a tiny model has loaded all libraries. Bar: peak <= forecast <= 1.3 x peak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import bench
import measure

BAR = 1.3
PATHS = os.pathsep.join([str(bench.HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
SHAPES = {
    "tiny": (64, 1, 128),
    "5": (256, 4, 704),
    "100": (768, 12, 2048),
    "600": (1536, 16, 5504),
}  # Width, layers, inner width.


def make_model(size: str, folder: Path) -> None:
    """Save a Llama of random weights, with the tokenizer of the bundled model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    width, layers, inner = SHAPES[size]
    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, tie_word_embeddings=True,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)
    student = resources.files("edgewise") / "assets" / "student"
    for path in Path(str(student)).glob("*token*"):
        shutil.copy(path, folder / path.name)


def tables(a: argparse.Namespace, base: str, whole: bool) -> dict[str, Any]:
    """Return the recipe: one device, one round of two steps."""
    top_k = [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.002}]
    return {
        "privacy": "none",
        "model": {"base": base, "precision": a.precision, "quantize": a.quantize},
        "trainable": {"kind": "full" if whole else "lora"},
        "data": {"source": "text", "path": "notes", "sequence_len": a.tokens},
        "round": {"rounds": 1},
        "training": {"local_steps": a.steps, "batch": a.rows, "checkpointing": a.checkpointing},
        "stage": [{"kind": "weigh"}, *(top_k if whole else [])],
        "eval": {"every": 0, **({} if whole else {"max_tokens": 512})},  # Two passes of an evaluation have its peak.
        "compare": {"local_only": False, "centralised": False},
    }


def child(a: argparse.Namespace, base: str, folder: Path) -> None:
    """Play the round under the limit, and print its peak."""
    resource.setrlimit(resource.RLIMIT_DATA, (a.limit_mb << 20, a.limit_mb << 20))
    import torch

    from edgewise.apps.simulate import simulation
    from edgewise.core.frame import LocalRule
    from edgewise.core.training import FitRequest
    from edgewise.drivers.workers.trainers import make_trainer
    from edgewise.learn.models.load import locate_model
    from edgewise.learn.models.memory import MARGIN, forecast
    from edgewise.plan.catalogue import BUILT_IN
    from edgewise.plan.compile import compile
    from edgewise.plan.held_memory import device_bytes, server_bytes
    from edgewise.plan.recipe import recipe

    torch.set_num_threads(1)

    def play(model: str, out: str) -> float:
        began = time.perf_counter()
        plain = recipe.from_plain(tables(a, model, whole=base == "bundled"))
        simulation.run(plain, out=folder / out, recipe_dir=folder, report=False)
        return time.perf_counter() - began

    play(str(folder / "tiny"), "warm")  # It loads all libraries and compiles all loops.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Forget the largest resident set so far.
    idle, began = measure.high_water_mb(), time.perf_counter()
    plain, peak, round_mb = recipe.from_plain(tables(a, base, whole=base == "bundled")), 0.0, 0.0
    if "device" in a.parts:
        made = make_trainer(plain, folder, folder / "alone", BUILT_IN).trainer
        rule = LocalRule(steps=a.steps, lr=1e-3)
        made.fit(FitRequest("ann", 0, made.initial(), rule, bytes(32), bytes(32)))
        made.evaluate("ann", made.initial())
        peak = measure.high_water_mb() - idle
        del made
    if "round" in a.parts:
        play(base, "run")
        round_mb = measure.high_water_mb() - idle
    seconds = time.perf_counter() - began
    arithmetic = getattr(torch, a.precision)
    found = forecast(
        locate_model(base, folder)[0], plain.trainable, plain.training, a.tokens, arithmetic, plain.model.quantize
    )
    plan = compile(plain, make_trainer(plain, folder, folder / "plan", BUILT_IN).trainer.spec, 1, BUILT_IN)
    device = found.total + device_bytes(plan)
    process = device + MARGIN * server_bytes(plan)
    bench.say(
        forecast_mb=device / 2**20, process_mb=process / 2**20, peak_mb=peak, round_mb=round_mb, idle_mb=idle,
        seconds=seconds,
        parts_mb=[round(x / 2**20, 1) for x in found],
    )  # fmt: skip


def main() -> None:
    """Measure every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="100")
    parser.add_argument("--limit-mb", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--parts", default="device,round", help="a device alone, and a whole round with the server")
    parser.add_argument("--child", nargs=2, metavar=("BASE", "FOLDER"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        child(a, a.child[0], Path(a.child[1]))
        return
    print(f"{bench.machine()}; limit {a.limit_mb} MiB, {a.rows} x {a.tokens} tokens, {a.precision}, {a.quantize}\n")
    print("| model | part | forecast, MiB | peak, MiB | forecast / peak | bar | seconds of both |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for size in a.sizes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder, base = Path(scratch), size
            (folder / "notes" / "ann").mkdir(parents=True)
            (folder / "notes" / "ann" / "1.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 3000)
            for which, name in (("tiny", "tiny"), (size, "model")):
                if which in SHAPES:
                    place = f"pathlib.Path({str(folder / name)!r})"
                    make = f"import device_memory as d, pathlib; d.make_model({which!r}, {place})"
                    bench.start([sys.executable, "-c", make + "; print('RESULT {}')"], PYTHONPATH=PATHS)
                    base = base if which == "tiny" else str(folder / name)
            options = [
                f"--{k}={v}"
                for k, v in vars(a).items()
                if k in ("tokens", "rows", "precision", "quantize", "steps", "parts")
            ]
            options += [f"--limit-mb={a.limit_mb}", *(["--checkpointing"] if a.checkpointing else [])]
            command = [sys.executable, __file__, *options, "--child", base, str(folder)]
            seen = bench.start(command)
        for part, forecast_key, key in (("device", "forecast_mb", "peak_mb"), ("round", "process_mb", "round_mb")):
            if part in a.parts:
                ratio = seen[forecast_key] / seen[key]
                met = "met" if 1 <= ratio <= BAR else "MISSED"
                cells = (size, part, f"{seen[forecast_key]:.0f}", f"{seen[key]:.0f}", f"{ratio:.2f}", met)
                print(f"| {' | '.join(cells)} | {seen['seconds']:.0f} |", flush=True)
        rows.append({"model": size, **seen})
    print(json.dumps(rows))
    bench.say(rows=rows)


if __name__ == "__main__":
    main()
