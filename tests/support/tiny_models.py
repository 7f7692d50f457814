"""Models of a few thousand parameters, of many architectures, saved as any real model is; and a recipe for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny_model

SMALL: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8}


def _of(name: str, **config: Any) -> Callable[[], Any]:
    def build() -> Any:
        import transformers

        made = getattr(transformers, f"{name}Config")
        return getattr(transformers, HEADS.get(name, f"{name}ForCausalLM"))(made(**config))

    return build


HEADS = {
    "GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel", "Electra": "ElectraForCausalLM",
    "XLM": "XLMWithLMHeadModel", "XLNet": "XLNetLMHeadModel", "Gemma3": "Gemma3ForConditionalGeneration",
}  # fmt: skip
GEMMA3 = {
    "text_config": GROUPED, "mm_tokens_per_image": 4, "image_token_index": 299, "boi_token_index": 297,
    "eoi_token_index": 298, "tie_word_embeddings": True,
    "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
                      "image_size": 28, "patch_size": 14},
}  # fmt: skip
MAMBA = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": _of("Llama", **SMALL, tie_word_embeddings=False),
    "llama-tied": _of("Llama", **SMALL, tie_word_embeddings=True),
    "qwen2-tied": _of("Qwen2", **SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2": _of("GPT2", vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0),
    "mamba": _of("Mamba", **MAMBA),
    "mamba2": _of("Mamba2", **MAMBA, num_heads=4, head_dim=8, n_groups=1, state_size=8),
    "gemma3": _of("Gemma3", **GEMMA3),
    "gpt-oss": _of("GptOss", **GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "mixtral": _of("Mixtral", **SMALL, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2),
    "bert": _of("Bert", **SMALL),
    "bert-decoder": _of("Bert", **SMALL, is_decoder=True),
    "electra": _of("Electra", **SMALL, embedding_size=16),
    "xlm": _of("XLM", vocab_size=300, emb_dim=16, n_layers=2, n_heads=2, max_position_embeddings=64, bos_index=0,
               eos_index=0, pad_index=1),
    "xlnet": _of("XLNet", vocab_size=300, d_model=16, n_layer=2, n_head=2, d_inner=24),
}  # fmt: skip
WIDE: dict[str, Callable[[], Any]] = {  # Widths that NF4 accepts, and weights whose rounding shows.
    "llama-wide": _of("Llama", **{**SMALL, "hidden_size": 64, "intermediate_size": 128}, initializer_range=0.2),
    "llama-odd": _of("Llama", **{**SMALL, "hidden_size": 64, "intermediate_size": 88}),
    "gpt2-wide": _of("GPT2", vocab_size=300, n_embd=64, n_layer=2, n_head=2, n_positions=64, bos_token_id=0,
                     eos_token_id=0),
}  # fmt: skip
CAUSAL = [name for name in BUILDERS if name not in ("bert", "electra", "xlm", "xlnet")]


def save(name: str, folder: Path, dtype: str = "float32") -> Path:
    """The model of that name with random weights and the tokenizer of ``tiny_model``, in ``folder``."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {**BUILDERS, **WIDE}[name]()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tiny_model.tokenizer().save_pretrained(folder)
    return folder


def project(folder: Path, base: str = "model") -> Path:
    """A recipe of one short round beside three owners' text; the model's folder ``base`` is not made here."""
    for owner in ("ann", "bob", "cyd"):
        (folder / "text" / owner).mkdir(parents=True)
        (folder / "text" / owner / "n.txt").write_text("\n".join(tiny_model.LINES) + owner, encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(base=base), encoding="utf-8")
    return recipe


RECIPE = """
schema = 1
name = "tiny"
privacy = "none"
[model]
base = "{base}"
precision = "float32"
[data]
source = "text"
path = "text"
sequence_len = 16
[round]
rounds = 1
[training]
local_steps = 2
batch = 2
lr = 1e-2
[eval]
every = 0
max_tokens = 64
[compare]
local_only = false
centralised = false
"""
