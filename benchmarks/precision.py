"""Seconds of a training step in float32 and in bfloat16, by the size of the model.

    python benchmarks/precision.py [--widths 64,128,256,512] [--shapes 1x64,8x128] [--kinds full,lora] [--steps 8]

Llamas of random weights (4 layers, 4,096 tokens, tied embeddings), one thread, AdamW, on rows of random tokens. Both
precisions train in the same process, step by step in turn, so that a slow minute meets both. The figure is the median
over the steps. ``learn.models.arithmetic`` takes its threshold from this table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import bench
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgewise.learn.models.adapters import make_trainable
from edgewise.learn.models.load import TextLoss, float32_attention
from edgewise.learn.train import LocalOptimizer
from edgewise.plan.recipe.sections import TrainingSection
from edgewise.plan.recipe.trainable import TrainableSection

KEY = bytes(32)


def llama(width: int, layers: int, vocabulary: int) -> LlamaForCausalLM:
    """Make a Llama of random weights. Heads have 32 columns, feed-forward parts three times the width."""
    torch.manual_seed(0)
    heads = max(1, width // 32)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def stepper(
    width: int, kind: str, rows: int, tokens: int, dtype: torch.dtype, a: argparse.Namespace
) -> Callable[[], int]:
    """Return a function that takes one training step and returns the number of parameters of the model."""
    model = llama(width, a.layers, a.vocabulary)
    n = sum(p.numel() for p in model.parameters())
    if dtype is torch.bfloat16:
        float32_attention(model)
    adapted, flat = make_trainable(model, TrainableSection(kind=kind), KEY, frozen=dtype)
    loss, optimizer = TextLoss(dtype), LocalOptimizer(TrainingSection(), flat, dtype)
    s_BS = torch.randint(0, a.vocabulary, (rows, tokens + 1), generator=torch.Generator().manual_seed(1))
    adapted.train()

    def step() -> int:
        flat.zero_grad()
        loss(adapted, (s_BS, rows * tokens))[0].backward()
        optimizer.step(1e-4)
        return n

    return step


def main() -> None:
    """Time every width, kind and shape in both precisions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="64,128,256,512")
    parser.add_argument("--shapes", default="1x64,8x128")
    parser.add_argument("--kinds", default="full,lora")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{bench.machine()}\n")
    print("| parameters | trained | rows x tokens | float32, s | bfloat16, s | ratio |\n|---|---|---|---|---|---|")
    found = []
    for width in map(int, a.widths.split(",")):
        for kind in a.kinds.split(","):
            for shape in a.shapes.split(","):
                rows, tokens = map(int, shape.split("x"))
                dtypes = (torch.float32, torch.bfloat16)
                steps = [stepper(width, kind, rows, tokens, dtype, a) for dtype in dtypes]
                times: list[list[float]] = [[], []]
                for i in range(a.steps + 1):
                    for step, seen in zip(steps, times, strict=True):
                        began = time.perf_counter()
                        n = step()
                        if i:
                            seen.append(time.perf_counter() - began)
                slow, fast = map(statistics.median, times)
                print(f"| {n:,} | {kind} | {shape} | {slow:.4f} | {fast:.4f} | {slow / fast:.2f} |", flush=True)
                found.append({"parameters": n, "kind": kind, "shape": shape, "float32_s": slow, "bfloat16_s": fast})
    bench.say(found=found)


if __name__ == "__main__":
    main()
