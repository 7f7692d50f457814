"""Time to the first token and tokens per second of a model in use, beside the same model without a key-value cache.

    python benchmarks/generation.py [--models bundled,hidden-512] [--tokens 128] [--prompt 64] [--repeats 5]

One thread. Cached and uncached generation take turns, greedily, over the same prompt, and have to give the same tokens.
``bundled`` is the shipped model. ``hidden-512`` is a random Llama of 4 layers of that width, with the same tokenizer.
Figures are medians with their range. The first time to load has the import of transformers in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
import torch

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer " * 20


def model(name: str) -> tuple[Any, float]:
    """A model by its name, and the seconds to load it."""
    from edgewise.learn.models.exported import copy_tokenizer
    from edgewise.learn.models.load import load

    base = "bundled"
    if name.startswith("hidden-"):
        from transformers import LlamaConfig, LlamaForCausalLM

        width = int(name.removeprefix("hidden-"))
        base = tempfile.mkdtemp()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=4096, hidden_size=width, intermediate_size=3 * width, num_hidden_layers=4,
            num_attention_heads=width // 32, max_position_embeddings=1024, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(base)
        copy_tokenizer(load("bundled", Path()).folder, Path(base))
    begun = time.perf_counter()
    loaded = load(base, Path())
    return loaded, time.perf_counter() - begun


def uncached(loaded: Any, ids: list[int], tokens: int) -> tuple[list[int], float]:
    """The likeliest tokens, each from the whole text anew."""
    from edgewise.learn.models.architecture import logits

    begun, out = time.perf_counter(), list(ids)
    with torch.no_grad():
        for _ in range(tokens):
            out.append(int(logits(loaded.model, torch.tensor([out]))[0, -1].argmax()))
    return out[len(ids) :], time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="bundled")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    from edgewise.learn.models.streaming import Decoding, prompt_token_ids, stream

    rows = {}
    for name in a.models.split(","):
        loaded, load_s = model(name)
        loaded.model.eval()
        ids = prompt_token_ids(loaded.tokens, TEXT)[: a.prompt]
        first, rate, slow, same = [], [], [], True
        for _ in range(a.repeats):
            answer = stream(loaded.model, loaded.tokens, ids, Decoding(a.tokens, 0.0), lambda piece: None)
            plain, seconds = uncached(loaded, ids, answer.tokens)
            same &= answer.text == loaded.tokens.decode([t for t in plain if t != loaded.tokens.end])
            first.append(answer.first_s)
            rate.append(answer.tokens_per_s)
            slow.append(answer.tokens / seconds)
        rows[name] = {
            "load_s": load_s, "first_token_s": first, "tokens_per_s": rate, "uncached_tokens_per_s": slow,
            "same_tokens": same,
        }  # fmt: skip
        print(f"{name}: load {load_s:.2f} s, first token {bench.spread(first)} s, {bench.spread(rate)} tokens/s")
        print(f"  without a cache {bench.spread(slow)} tokens/s, ratio {bench.ratios(rate, slow)}, same tokens: {same}")
    bench.say(prompt=a.prompt, tokens=a.tokens, models=rows)


if __name__ == "__main__":
    main()
