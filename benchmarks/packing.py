"""Speed of training on short rows that share blocks and are kept apart, beside one row a block and beside joining.

    python benchmarks/packing.py                       # the bundled model, 256 rows of 8 to 40 tokens, blocks of 256
    python benchmarks/packing.py --hidden 512 --layers 4

Rows, batch size in blocks and model are the same. A step computes loss and gradient of all parameters with one thread.
Speed is learnt tokens per second, the best of three passes. The three ways take turns. `none` pads a batch to its
longest row, as training does.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

WORDS = "the cow went to river and twelve old stones were found there by a girl with blue hat nobody saw them".split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=0, help="a Llama of this width with random weights. 0: bundled")
    parser.add_argument("--layers", type=int, default=4)
    asked = parser.parse_args()

    import torch

    from edgewise.learn.models.load import load

    torch.set_num_threads(1)
    loaded = load("bundled", Path())
    model = random_llama(asked, loaded.tokens.size) if asked.hidden else loaded.model
    made = {packing: made_blocks(loaded.tokens, packing, asked) for packing in ("isolated", "none", "joined")}
    best: dict[str, float] = {}
    for _ in range(3):
        for packing, blocks_NS in made.items():
            best[packing] = max(best.get(packing, 0.0), speed(model, packing, blocks_NS, asked.batch))
    print("| packing | blocks | tokens of a block that are learnt | learnt tokens/s | of one row a block |")
    print("| --- | --- | --- | --- | --- |")
    for packing, blocks_NS in made.items():
        share = float((blocks_NS[:, 1:] >= 0).mean())
        times = best[packing] / best["none"]
        print(f"| `{packing}` | {len(blocks_NS)} | {100 * share:.0f} % | {best[packing]:,.0f} | {times:.2f} x |")


def random_llama(asked: argparse.Namespace, vocabulary: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=asked.hidden, intermediate_size=asked.hidden * 8 // 3,
            num_hidden_layers=asked.layers, num_attention_heads=max(1, asked.hidden // 64),
            max_position_embeddings=asked.length,
        )
    )  # fmt: skip


def made_blocks(tokens: Any, packing: str, asked: argparse.Namespace) -> Any:
    from edgewise.learn.text.blocks import build
    from edgewise.learn.text.corpus import Document
    from edgewise.plan.recipe.data import DataSection

    rng = np.random.default_rng(0)
    texts = [[" ".join(rng.choice(WORDS, size=rng.integers(4, 20))) for _ in range(2)] for _ in range(asked.rows)]
    section = DataSection(
        source="jsonl", path="x.jsonl", owner="x", prompt="p", sequence_len=asked.length, holdout=0.01,
        packing=packing,
    )  # fmt: skip
    return build([Document("row", *pair) for pair in texts], tokens, section, cut_each=False).train_NS


def speed(model: Any, packing: str, blocks_NS: Any, batch: int) -> float:
    import torch

    from edgewise.learn.models.load import TextLoss
    from edgewise.learn.text.shards import _loss_batch

    loss, learnt = TextLoss(torch.float32, packing == "isolated"), int((blocks_NS[:, 1:] >= 0).sum())
    model.train()
    start = time.perf_counter()
    for at in range(0, len(blocks_NS), batch):
        model.zero_grad()
        loss(model, _loss_batch(blocks_NS[at : at + batch]))[0].backward()
    return learnt / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
