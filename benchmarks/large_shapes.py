"""Memory and bytes per step of a model of 2.7 billion parameters: the device's stage, and the whole, both in 4 bits.

    python benchmarks/large_shapes.py --folder /tmp/shapes                                   # 2.7 billion parameters
    python benchmarks/large_shapes.py --folder /tmp/small --hidden 512 --layers 4            # a small one first
    python benchmarks/large_shapes.py --folder /tmp/shapes --row device                      # one row again

A Llama of random weights in bfloat16 is written block by block, so that no process ever holds it. ``device`` loads the
embedding, two blocks in NF4, the final norm and the head (U-shape) and takes a step of adapters in split mode.
``whole`` loads all blocks in NF4 and takes a step of adapters, with checkpointing. Each is a process. Memory is the
peak of its unshared memory above that with all libraries imported, sampled 20 times a second from before the load.

Bars: device below 1 GB, whole at most 3 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

BARS = {"device": 1000.0, "whole": 3000.0}
BLOCKS, RANK = 2, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--row", choices=[*BARS, "copy"], help="one row, in this process")
    asked = parser.parse_args()
    if asked.row:
        rows = {"device": device, "whole": whole, "copy": copy}
        print(json.dumps(rows[asked.row](asked)))
        return
    if not (asked.folder / "config.json").is_file():
        save(asked.folder, asked.hidden, asked.layers)
    for row in ("copy", *BARS):
        command = [sys.executable, "-P", __file__, "--folder", str(asked.folder), "--tokens", str(asked.tokens)]
        found = json.loads(subprocess.run([*command, "--row", row], check=True, stdout=subprocess.PIPE).stdout)
        bar = f"  bar {BARS[row]:,.0f} MB" if row in BARS else ""
        print(row, json.dumps(found), bar, flush=True)


def save(folder: Path, hidden: int, layers: int) -> None:
    """Write the model's folder, one file per block."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = hidden // 64
    config = LlamaConfig(
        vocab_size=32000, hidden_size=hidden, intermediate_size=hidden * 27 // 10 // 64 * 64, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=512, tie_word_embeddings=False,
        dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, torch.Size]] = {}
    for name, p in model.named_parameters():
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else "rest", {})[name] = p.shape
    index, total, draw = {}, 0, torch.Generator().manual_seed(0)
    for i, shapes in enumerate(groups.values(), 1):
        path = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors = {n: (torch.randn(s, generator=draw) * 0.02).to(torch.bfloat16) for n, s in shapes.items()}
        save_file(tensors, folder / path, {"format": "pt"})
        index |= dict.fromkeys(tensors, path)
        total += sum(x.numel() * 2 for x in tensors.values())
    plain = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(plain))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    print(f"{total // 2:,} parameters", flush=True)


def copy(asked: argparse.Namespace) -> dict[str, Any]:
    """Quantize the whole model once and keep the copy."""
    import torch

    from edgewise.learn.models import quantized

    torch.set_num_threads(1)
    start, peak = time.perf_counter(), Peak()
    quantized.load_quantized(asked.folder, "nf4", torch.bfloat16, asked.folder / "cache")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_mb": peak.stop()}


def device(asked: argparse.Namespace) -> dict[str, Any]:
    """Load the device's stages and take a step: forward, gradients from outside, backward, AdamW."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    from edgewise.codecs.wire.tokens import TokenCodec
    from edgewise.learn.models.part import load_part

    torch.set_num_threads(1)
    peak = Peak()
    part = load_part(asked.folder, BLOCKS, "U", "device", torch.bfloat16, quantize="nf4")
    loaded = peak.now()
    for p in part.model.parameters():
        p.requires_grad_(False)
    adapters = LoraConfig(
        r=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"]
    )
    stage: Any = inject_adapter_in_model(adapters, part.stages.device)
    trained = [p for p in stage.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    ids_BT = torch.randint(0, 32000, (1, asked.tokens), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    h_BTC = stage(ids_BT)
    top = part.stages.top
    assert top is not None
    back_BTC = h_BTC.detach().requires_grad_()  # The server's blocks stand between both. Here nothing does.
    torch.nn.functional.cross_entropy(top(back_BTC)[0].float(), ids_BT[0]).backward()
    h_BTC.backward(back_BTC.grad)
    optimizer.step()
    seconds = time.perf_counter() - start
    width = h_BTC.shape[-1]
    crossing = len(TokenCodec("int8", width).encode(h_BTC[0].detach().float().numpy()))
    return {
        "loaded_mb": loaded, "peak_mb": peak.stop(), "step_s": round(seconds, 2), "tokens": asked.tokens,
        "bytes_of_a_step": 4 * crossing, "adapter_parameters": sum(p.numel() for p in trained),
    }  # fmt: skip


def whole(asked: argparse.Namespace) -> dict[str, Any]:
    """Load the copy in 4 bits and take a step of adapters with checkpointing."""
    import torch

    from edgewise.core.keys import root
    from edgewise.learn.models import quantized
    from edgewise.learn.models.adapters import make_trainable
    from edgewise.learn.models.load import TextLoss, checkpoint_layers, float32_attention
    from edgewise.plan.recipe.trainable import TrainableSection

    torch.set_num_threads(1)
    peak = Peak()
    model = quantized.load_quantized(asked.folder, "nf4", torch.bfloat16, asked.folder / "cache")
    loaded = peak.now()
    float32_attention(model)
    checkpoint_layers(model, asked.folder.name)
    made, flat = make_trainable(model, TrainableSection(kind="lora", rule="ffa", rank=RANK), root(0), torch.bfloat16)
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-4)
    made.train()
    ids_BS = torch.randint(0, 32000, (1, asked.tokens + 1), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    TextLoss(torch.bfloat16)(made, (ids_BS, asked.tokens))[0].backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    return {
        "loaded_mb": loaded, "peak_mb": peak.stop(), "step_s": round(seconds, 1), "tokens": asked.tokens,
        "bytes_of_an_update": {"float32": 4 * flat.spec.dim, "4 bits": flat.spec.dim // 2},
    }  # fmt: skip


class Peak:
    """Sample the process's unshared memory in a thread, in MB (10^6 bytes) above that at the start."""

    def __init__(self) -> None:
        import peft  # noqa: F401  (so that its memory is in the baseline)
        import psutil
        from transformers import LlamaForCausalLM  # noqa: F401

        from edgewise.learn.models import adapters, quantized  # noqa: F401

        quantized.import_bitsandbytes()
        self._process = psutil.Process()
        self._start, self._peak, self._over = self._uss(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _uss(self) -> int:
        return int(self._process.memory_full_info().uss)

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._peak = max(self._peak, self._uss())

    def now(self) -> float:
        """Return the memory of this moment."""
        return round((self._uss() - self._start) / 1e6, 1)

    def stop(self) -> float:
        """End the sampling and return the peak."""
        self._over.set()
        self._thread.join()
        return round((max(self._peak, self._uss()) - self._start) / 1e6, 1)


if __name__ == "__main__":
    main()
