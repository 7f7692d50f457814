"""GGUF files of models, read by programs that are not edgewise: logits by transformers' reader, tensors by llama.cpp's.

    python benchmarks/gguf_files.py [--models bundled,llama,qwen2,gpt2] [--llama-cpp SOURCE]

For each model and type: the bytes of the file, the largest difference of a number by rounding, and two differences of
logits over 64 tokens, as shares of the largest logit. ``rounding`` is between the model in float32 and the file as
transformers reads it. ``readers`` is between transformers' reading and edgewise's own, so it is 0 where both find the
same model. ``llama`` has grouped heads and an output head of its own; all but ``bundled`` are random.

``--llama-cpp`` names a source tree of llama.cpp. Its converters then write the same model and adapter, and every tensor
is compared byte by byte. ``llama.cpp`` is the difference of logits between the model in float32 and the file as
llama.cpp computes it, where the package cyllama is installed. The converters know a tokenizer by a digest of its
tokens, which no small tokenizer has, so they are given the name of the pre-tokenizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import bench
import numpy as np
import torch

TEXT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer " * 9
reference: Any = None
if importlib.util.find_spec("cyllama"):
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
    reference = importlib.import_module("llama_logits")
SMALL = {"vocab_size": 4096, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDE = {**SMALL, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "q8_0": "q8_0"}
CONVERT = """
import importlib.machinery, json, runpy, sys, types
source, pre, runs = sys.argv[1:]
sys.path[:0] = [source, source + "/gguf-py"]
if "sentencepiece" not in sys.modules:
    absent = types.ModuleType("sentencepiece")
    absent.__spec__, absent.SentencePieceProcessor = importlib.machinery.ModuleSpec("sentencepiece", None), None
    sys.modules["sentencepiece"] = absent
import conversion.base as base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
for script, *rest in json.loads(runs):
    sys.argv = [script, *rest]
    runpy.run_path(f"{source}/{script}", run_name="__main__")
"""


def model(name: str, folder: Path) -> Any:
    """A model with the bundled tokenizer, loaded from ``folder``."""
    import transformers

    from edgewise.learn.models.exported import copy_tokenizer
    from edgewise.learn.models.load import load

    bundled = load("bundled", Path())
    torch.manual_seed(0)
    if name == "bundled":
        made = bundled.model
    elif name == "llama":
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**WIDE))
    elif name == "qwen2":
        made = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**WIDE, tie_word_embeddings=True))
    else:
        config = transformers.GPT2Config(
            **SMALL, n_embd=256, n_layer=4, n_head=8, n_ctx=1024
        )  # llama.cpp asks for n_ctx.
        made = transformers.GPT2LMHeadModel(config)
    made.float().save_pretrained(folder)
    copy_tokenizer(bundled.folder, folder)
    return load(str(folder), Path())


def logits(model: Any, ids_BT: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=ids_BT).logits


def convert(source: str, runs: list[list[str]]) -> None:
    """Run converters of llama.cpp, each with its arguments. Raises RuntimeError with the last line of an error."""
    command = [sys.executable, "-c", CONVERT, source, "gpt-2", json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **bench.QUIET}, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def identical(ours: Path, theirs: Path) -> str:
    """Compare the tensors of two files byte by byte."""
    import gguf

    a, b = ({t.name: t for t in gguf.GGUFReader(path).tensors} for path in (ours, theirs))
    same = [
        n for n in a.keys() & b.keys() if a[n].tensor_type == b[n].tensor_type and np.array_equal(a[n].data, b[n].data)
    ]
    return f"{len(same)} of {len(a.keys() | b.keys())}"


def write_adapter(loaded: Any, folder: Path) -> None:
    """Write a random adapter as GGUF and for peft."""
    from edgewise.core.keys import root
    from edgewise.learn.models.adapters import make_trainable
    from edgewise.learn.models.gguf import files
    from edgewise.plan.recipe.trainable import TrainableSection

    section = TrainableSection(kind="lora", rule="fedit", rank=4)
    model, flat = make_trainable(loaded.model, section, root(0), torch.float32)
    flat.write(np.random.default_rng(0).normal(0, 0.02, flat.spec.dim).astype(np.float32))
    files.write_adapter(model, folder / "adapter.gguf", "float32", {})
    model.save_pretrained(folder / "peft")


def examine(name: str, folder: Path, source: str) -> dict[str, Any]:
    """Write a model in all types, and read it by the other programs."""
    from transformers import AutoModelForCausalLM

    from edgewise.learn.models.gguf import files

    loaded = model(name, folder / "model")
    ids_BT = torch.tensor([loaded.tokens.encode([TEXT])[0][:64].tolist()])
    plain_BTV = logits(loaded.model, ids_BT)
    scale, found = float(plain_BTV.abs().max()), {}
    kept = {n: p.detach().clone() for n, p in loaded.model.named_parameters()}
    for dtype in files.TYPES:
        path = folder / f"{dtype}.gguf"
        written = files.write_model(loaded.model, loaded.folder, path, dtype, {})
        more = {"config": loaded.model.config} if name == "gpt2" else {}  # transformers reads no number of positions.
        other = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype=torch.float32, **more)
        read_BTV = logits(other, ids_BT)
        files.load_gguf_into(loaded.model, path)
        own_BTV = logits(loaded.model, ids_BT)
        with torch.no_grad():
            for n, p in loaded.model.named_parameters():
                p.copy_(kept[n])
        found[dtype] = {
            "bytes": path.stat().st_size,
            "numbers": written.rounding,
            "rounding": float((read_BTV - plain_BTV).abs().max()) / scale,
            "readers": float((read_BTV - own_BTV).abs().max()) / scale,
        }
        if reference is not None:
            computed_TV = reference.logits(path, ids_BT[0].tolist())
            found[dtype]["llama.cpp"] = float(np.abs(computed_TV - plain_BTV[0].numpy()).max()) / scale
    if source:
        write_adapter(loaded, folder)
        base, out = (
            str(folder / "model"),
            {dtype: str(folder / f"theirs-{dtype}.gguf") for dtype in (*SHORT, "adapter")},
        )
        runs = [["convert_hf_to_gguf.py", base, "--outfile", out[d], "--outtype", s] for d, s in SHORT.items()]
        lora = ["convert_lora_to_gguf.py", "--outfile", out["adapter"], "--base", base, str(folder / "peft")]
        convert(source, [*runs, lora])
        found["adapter"] = {}
        for dtype, theirs in out.items():
            found[dtype]["identical"] = identical(folder / f"{dtype}.gguf", Path(theirs))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="bundled,llama,qwen2,gpt2")
    parser.add_argument("--llama-cpp", default="")
    a = parser.parse_args()
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = {}
    for name in a.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = examine(name, Path(folder), a.llama_cpp)
        for dtype, row in rows[name].items():
            print(
                name, dtype, ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            )
    bench.say(models=rows)


if __name__ == "__main__":
    main()
