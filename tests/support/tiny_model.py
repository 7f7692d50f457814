"""A Llama of 40,000 parameters and a byte-level tokenizer of 300 entries, saved as any real model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LINES = [
    "the quick brown fox jumps over the lazy dog",
    "def add(a, b):\n    return a + b\n",
    "a device trains on its own text and sends an update",
    "for i in range(10):\n    print(i)\n",
] * 4
END, PAD = "<|endoftext|>", "<|pad|>"


def tokenizer() -> Any:
    """Byte-level BPE; entry 0 starts and ends a document, entry 1 is padding."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=300, special_tokens=[END, PAD], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD)


def save(folder: Path, tie: bool = True, seed: int = 0) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer().save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=128, tie_word_embeddings=tie, bos_token_id=0, eos_token_id=0, pad_token_id=1,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def save_place(folder: Path) -> Path:
    """Write the model and the notes of two devices: FOLDER/model, FOLDER/notes/DEVICE/1.txt."""
    save(folder / "model")
    for name in ("phone-1", "hub-1"):
        (folder / "notes" / name).mkdir(parents=True)
        (folder / "notes" / name / "1.txt").write_text("".join(f"the fox {i} jumps\n" for i in range(200)))
    return folder
