"""Memory and speed of LoRA on a base in float32, bfloat16, NF4 and int8, and gradients around an evaluation.

    python benchmarks/quantized_base.py                          # a Llama of 100 M weights (768 x 12), 4 x 128 tokens
    python benchmarks/quantized_base.py --hidden 256 --layers 4  # a smaller one first

Every row trains the same adapters (rank 8, all linear layers) on the same random weights, in a process of its own and
with one thread. Memory is the growth of the process's unshared memory (USS) over a process with torch and transformers
imported, at its peak. The peak is sampled after each forward and each backward pass. Speed is that of the fastest step
after two warm-up steps, since other programs only slow a step down.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROWS = ("float32", "bfloat16", "nf4", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--row", choices=ROWS, help="internal: measure one row of --folder")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(measure(asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), asked.hidden, asked.layers)
        rows = {row: one(row, folder, asked) for row in ROWS}
    print(table(rows))


def save(folder: Path, hidden: int, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=16384, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def one(row: str, folder: str, asked: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-P", __file__, "--row", row, "--folder", folder]
    for name in ("hidden", "layers", "batch", "length", "steps"):
        command += [f"--{name}", str(getattr(asked, name))]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(row, found, file=sys.stderr)
    return found


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    import psutil
    import torch
    import transformers  # noqa: F401

    from edgewise.core.keys import root
    from edgewise.learn.models import quantized
    from edgewise.learn.models.adapters import trainable
    from edgewise.learn.models.load import TextLoss, float32_attention
    from edgewise.learn.models.weights import read_weights
    from edgewise.learn.torch_task import weights_bytes
    from edgewise.plan.recipe.trainable import TrainableSection

    torch.set_num_threads(1)
    process = psutil.Process()
    baseline, highest = process.memory_full_info().uss, 0

    def sample() -> None:
        nonlocal highest
        highest = max(highest, process.memory_full_info().uss)

    dtype = torch.float32 if asked.row == "float32" else torch.bfloat16
    started = time.perf_counter()
    if asked.row in ("nf4", "int8"):
        quantized.load(asked.folder, asked.row, dtype, asked.folder / "cache")
        first_load_s, started = time.perf_counter() - started, time.perf_counter()
        model = quantized.load(asked.folder, asked.row, dtype, asked.folder / "cache")
    else:
        first_load_s, model = 0.0, read_weights(asked.folder, dtype=dtype)
    load_s = time.perf_counter() - started
    if dtype is torch.bfloat16:
        float32_attention(model)
    model, flat = trainable(model, TrainableSection(kind="lora", rule="fedit", rank=8), root(0), dtype)
    loss = TextLoss(dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids_BS = torch.randint(0, 16384, (asked.batch, asked.length + 1), generator=torch.Generator().manual_seed(0))
    predicted = asked.batch * asked.length

    def gradients() -> Any:
        model.train()
        optimizer.zero_grad()
        value, _ = loss(model, (ids_BS, predicted))
        sample()
        value.backward()
        sample()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    times = []
    for step in range(asked.steps + 2):
        start = time.perf_counter()
        gradients()
        optimizer.step()
        sample()
        if step >= 2:
            times.append(time.perf_counter() - start)
    before = gradients()
    with torch.no_grad():
        model.eval()
        loss(model, (ids_BS, predicted))
        one_token = []
        for _ in range(10):
            start = time.perf_counter()
            model(input_ids=ids_BS[:1, :1], use_cache=False)
            one_token.append(time.perf_counter() - start)
    return {
        "weights_mb": weights_bytes(model) / 1e6,
        "peak_uss_mb": (highest - baseline) / 1e6,
        "max_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "tokens_per_s": predicted / min(times),
        "one_token_ms": 1e3 * min(one_token),
        "load_s": load_s,
        "first_load_s": first_load_s,
        "gradients_equal": bool(torch.equal(gradients(), before)),
        "trained": flat.spec.dim,
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| base | weights, MB | peak over idle, MB | tokens/s | of bfloat16 | one token, ms | load, s | first load, s "
        "| gradients equal around an evaluation |",
        "| --- " * 9 + "|",
    ]
    reference = rows["bfloat16"]["tokens_per_s"]
    for name, r in rows.items():
        share = r["tokens_per_s"] / reference
        lines.append(
            f"| {name} | {r['weights_mb']:.0f} | {r['peak_uss_mb']:.0f} | {r['tokens_per_s']:.0f} | {share:.2f} "
            f"| {r['one_token_ms']:.0f} | {r['load_s']:.1f} | {r['first_load_s']:.1f} "
            f"| {'yes' if r['gradients_equal'] else 'NO'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
