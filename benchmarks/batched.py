"""Several devices trained in one pass, against the same devices one by one.

    python benchmarks/batched.py [--devices 16] [--shapes 1x64,2x64,8x128] [--widths 0,320] [--precisions float32]

LoRA on a shared frozen base, one thread. Width 0 is the bundled model (1.4 M parameters), others are Llamas of random
weights (4 layers). Both ways train the same devices for the same steps in turn. A figure is the ratio of the medians,
one by one / together, so above 1 the batch is faster. Bars: 1.4 at 1 x 64 tokens of a device, 1.2 at 2 x 64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import bench
import numpy as np
import torch
from precision import llama

from edgewise.core.frame import LocalRule
from edgewise.core.training import FitRequest
from edgewise.learn.batched import DeviceBuffers, OnePass, fit_many
from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.load import TextLoss, float32_attention, load
from edgewise.learn.train import LocalOptimizer, fit
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection

BARS = {"1x64": 1.4, "2x64": 1.2}  # of LoRA on a shared base
SECTIONS = {
    "lora": TrainableSection(kind="lora", rule="fedit"),
    "full": TrainableSection(kind="full"),
    "layers": TrainableSection(kind="layers", layers=["*.self_attn.*"]),
}


def ways(width: int, shape: str, dtype: torch.dtype, a: argparse.Namespace) -> tuple[int, list[Callable[[], object]]]:
    """Return the model's parameters, and training one by one and together as functions without arguments."""
    model = llama(width, 4, 4096) if width else load("bundled", Path()).model
    n = sum(p.numel() for p in model.parameters())
    if dtype is torch.bfloat16:
        float32_attention(model)
    model, flat = make_trainable(model, SECTIONS[a.trained], bytes(32), frozen=dtype)
    rows, tokens = map(int, shape.split("x"))
    generator, training, loss = torch.Generator().manual_seed(0), TrainingSection(), TextLoss(dtype)
    batches = [
        [[(torch.randint(0, 4096, (rows, tokens + 1), generator=generator), rows * tokens)]] * a.steps
        for _ in range(a.devices)
    ]
    start = flat.read() + np.float32(0.01)
    rule = LocalRule(steps=a.steps, lr=1e-3)
    requests = [FitRequest(f"d{i}", 0, start, rule, bytes(32), bytes(32)) for i in range(a.devices)]
    optimizer = LocalOptimizer(training, flat, dtype)
    passes = OnePass(model, loss, flat)
    if passes.apart:
        raise SystemExit(passes.apart)

    buffers = DeviceBuffers(a.group or a.devices, flat, training, dtype)

    def alone() -> object:
        return [
            fit(model, loss, given, flat, r.params, rule, training, r.key, optimizer)
            for r, given in zip(requests, batches, strict=True)
        ]

    def together() -> object:
        size = a.group or a.devices
        return [
            one
            for at in range(0, a.devices, size)
            for one in fit_many(passes, buffers, requests[at : at + size], batches[at : at + size])
        ]

    return n, [alone, together]


def main() -> None:
    """Time all models, shapes and precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--group", type=int, default=0, help="devices in one pass; 0 = all")
    parser.add_argument("--shapes", default="1x64,2x64,8x128")
    parser.add_argument("--widths", default="0,320")
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--trained", choices=sorted(SECTIONS), default="lora")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{bench.machine()}; {a.devices} devices, {a.group or a.devices} in a pass\n")
    print("| parameters | precision | rows x tokens | one by one, s | together, s | ratio | bar |")
    print("|---|---|---|---|---|---|---|")
    found = []
    for width in map(int, a.widths.split(",")):
        for precision in a.precisions.split(","):
            for shape in a.shapes.split(","):
                n, both = ways(width, shape, getattr(torch, precision), a)
                times: list[list[float]] = [[], []]
                for i in range(a.repeats + 1):
                    for way, seen in zip(both, times, strict=True):
                        began = time.perf_counter()
                        way()
                        if i:
                            seen.append(time.perf_counter() - began)
                one, many = (statistics.median(seen) / a.steps for seen in times)
                bar = BARS.get(shape, 0.0)
                met = "" if not bar else f"{bar:g}: {'met' if one / many >= bar else 'missed'}"
                print(
                    f"| {n:,} | {precision} | {shape} | {one:.3f} | {many:.3f} | {one / many:.2f} | {met} |", flush=True
                )
                found.append({"parameters": n, "precision": precision, "shape": shape, "ratio": round(one / many, 3)})
    bench.say(found=found)


if __name__ == "__main__":
    main()
