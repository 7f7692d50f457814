"""Logits and tokens of a GGUF file by llama.cpp itself, from the package cyllama, which holds a built library.

logits(Path("model.gguf"), [0, 17, 200])       # float32[T, V]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

llama_cpp: Any = pytest.importorskip("cyllama.llama.llama_cpp", exc_type=ImportError)
F32 = 0  # ggml's number of the type


class _Model(llama_cpp.LlamaModel):  # type: ignore[misc]
    """A model with the number of tokens, which the bindings ask it for and version 0.2 of them lacks."""

    @property
    def n_vocab(self) -> int:
        return int(self.get_vocab().n_vocab)


def _model(path: Path) -> Any:
    llama_cpp.disable_logging()
    params = llama_cpp.LlamaModelParams()
    params.n_gpu_layers = 0
    return _Model(str(path), params, verbose=False)


def logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """Compute the logits of each position, with keys and values in float32 and one thread."""
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(ids), 64)
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = F32
    params.flash_attn_type = 0
    context = llama_cpp.LlamaContext(_model(path), params, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    for i, token in enumerate(ids):
        batch.add(token, i, [0], True)
    context.decode(batch)
    return np.array([context.get_logits_ith(i) for i in range(len(ids))], np.float32)


def tokens(path: Path, text: str) -> list[int]:
    """Tokenize a text, without a token for its beginning."""
    model = _model(path)  # A vocabulary does not keep its model alive.
    return list(model.get_vocab().tokenize(text, False, False))


def adapter_facts(path: Path, adapter: Path) -> dict[str, str]:
    """Read the facts of an adapter file with llama.cpp's loader, which refuses factors that do not fit the model."""
    model = _model(path)
    lora = model.lora_adapter_init(str(adapter))
    return {lora.meta_key_by_index(i): lora.meta_val_str_by_index(i) for i in range(lora.meta_count())}
