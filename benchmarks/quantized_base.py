"""Memory and speed of LoRA on a base in float32, bfloat16, NF4 and int8, and gradients around an evaluation.

    python benchmarks/quantized_base.py                          # a Llama of 100 M weights (768 x 12), 4 x 128 tokens
    python benchmarks/quantized_base.py --hidden 256 --layers 4  # a smaller one first

Every row trains the same adapters (rank 8, all linear layers) on the same random weights with one thread. Memory is
measured in a process of its own: the peak of its unshared memory (USS) after forward and backward passes, over that
before the model is loaded. Speed is that of the fastest step. The rows take turns there, in one process.
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--row", help="internal: the memory of one row of --folder, or the speed of all")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.row:
        print(json.dumps(speeds(asked) if asked.row == "speeds" else memory(asked)))
        return
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), asked.hidden, asked.layers)
        rows = one("speeds", folder, asked)  # It also makes the quantized copies, which the other processes read.
        for row in ROWS:
            rows[row] |= one(row, folder, asked)
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


class Training:
    """A model of one row with its adapters, and a batch."""

    def __init__(self, row: str, asked: argparse.Namespace) -> None:
        import torch

        from edgewise.core.keys import root
        from edgewise.learn.models import quantized
        from edgewise.learn.models.adapters import make_trainable
        from edgewise.learn.models.load import TextLoss, float32_attention
        from edgewise.learn.models.weights import read_weights
        from edgewise.plan.recipe.trainable import TrainableSection

        torch.set_num_threads(1)
        dtype = torch.float32 if row == "float32" else torch.bfloat16
        if row in ("nf4", "int8"):
            model = quantized.load_quantized(asked.folder, row, dtype, asked.folder / "cache")
        else:
            model = read_weights(asked.folder, dtype=dtype)
        if dtype is torch.bfloat16:
            float32_attention(model)
        section = TrainableSection(kind="lora", rule="fedit", rank=8)
        self.model, self.flat = make_trainable(model, section, root(0), dtype)
        self.loss, self.predicted = TextLoss(dtype), asked.batch * asked.length
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        draw = torch.Generator().manual_seed(0)
        self.ids_BS = torch.randint(0, 16384, (asked.batch, asked.length + 1), generator=draw)

    def step(self, sample: Any = None) -> float:
        """Take a step and return its seconds. ``sample`` is called after the forward and the backward pass."""
        start = time.perf_counter()
        self.model.train()
        self.optimizer.zero_grad()
        value, _ = self.loss(self.model, (self.ids_BS, self.predicted))
        if sample is not None:
            sample()
        value.backward()
        if sample is not None:
            sample()
        self.optimizer.step()
        return time.perf_counter() - start

    def gradients(self) -> Any:
        import torch

        self.model.train()
        self.model.zero_grad()
        self.loss(self.model, (self.ids_BS, self.predicted))[0].backward()
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.requires_grad])

    def token(self) -> float:
        """Evaluate one token and return its seconds."""
        import torch

        self.model.eval()
        start = time.perf_counter()
        with torch.no_grad():
            self.model(input_ids=self.ids_BS[:1, :1], use_cache=False)
        return time.perf_counter() - start


def memory(asked: argparse.Namespace) -> dict[str, Any]:
    """The memory of a row in a process of its own, and its gradients around an evaluation."""
    import peft  # noqa: F401  (so that its memory is in the baseline)
    import psutil
    import torch
    from transformers import LlamaForCausalLM  # noqa: F401

    from edgewise.learn.training_costs import model_weights_bytes

    process = psutil.Process()
    baseline, highest = process.memory_full_info().uss, 0

    def sample() -> None:
        nonlocal highest
        highest = max(highest, process.memory_full_info().uss)

    start = time.perf_counter()
    training = Training(asked.row, asked)
    load_s = time.perf_counter() - start
    for _ in range(2):
        training.step(sample)
    before = training.gradients()
    training.token()
    return {
        "weights_mb": model_weights_bytes(training.model) / 1e6,
        "peak_uss_mb": (highest - baseline) / 1e6,
        "load_s": load_s,
        "gradients_equal": bool(torch.equal(training.gradients(), before)),
    }


def speeds(asked: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The fastest step of each row. Rows take turns in one process, so other programs slow all of them down."""
    every, loads = dict[str, Training](), dict[str, float]()
    for row in ROWS:
        start = time.perf_counter()
        every[row] = Training(row, asked)
        loads[row] = time.perf_counter() - start
    steps: dict[str, list[float]] = {row: [] for row in ROWS}
    tokens: dict[str, list[float]] = {row: [] for row in ROWS}
    for _ in range(asked.steps + 1):
        for row, training in every.items():
            steps[row].append(training.step())
            tokens[row] += [training.token() for _ in range(3)]
    n = asked.batch * asked.length
    return {
        row: {
            "tokens_per_s": n / min(steps[row]),
            "one_token_ms": 1e3 * min(tokens[row]),
            "first_load_s": loads[row],
        }
        for row in ROWS
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
