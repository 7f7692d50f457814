"""Write a byte-level BPE tokenizer into a GGUF file: tokens, kinds, merges, the pre-tokenizer's name, special tokens.

llama.cpp knows pre-tokenizers by name only. A tokenizer that splits text in another way is refused, because the
exported model would read other tokens than in training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgewise.core.errors import EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.learn.models.gguf.architectures import ELSEWHERE

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {  # The pattern of a Split before ByteLevel -> its name in llama.cpp.
    _LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _LETTERS + r"\p{N}" + _REST: "qwen2",
}
NO_SPLIT = "gpt-2"  # ByteLevel with its own pattern.


def write_gguf_vocabulary(writer: Any, folder: Path, size: int) -> None:
    """Write a model's tokenizer with a ``gguf.GGUFWriter``.

    Args:
        folder: the model's folder.
        size: number of the model's token embeddings. Those without a token are written as unused.
    Raises:
        EdgewiseError: E-EXPORT for a tokenizer that is no byte-level BPE, or has a pre-tokenizer without a name.
    """
    import gguf
    from transformers import AutoTokenizer

    with foreign(EdgewiseError, "E-EXPORT", f"the tokenizer of {folder} cannot be read", "save it again."):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        plain = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = pretokenizer(plain)
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, i in plain["model"]["vocab"].items():
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
    for added in plain["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in plain["model"]["merges"]])
    _write_special(writer, tokenizer)


def _write_special(writer: Any, tokenizer: Any) -> None:
    """Write the special tokens. The token that starts a document in training starts a prompt too."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    template = getattr(tokenizer, "chat_template", None)
    if start is not None:
        writer.add_bos_token_id(start)
    # A chat template writes its first token itself. Without one, documents begin with the start token (learn.text).
    own = list(tokenizer("a").input_ids)
    writer.add_add_bos_token(start is not None and (not template or own[:1] == [start]))
    for name in ("eos", "pad", "unk"):
        if (token := getattr(tokenizer, f"{name}_token_id", None)) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    if isinstance(template, str):
        writer.add_chat_template(template)


def pretokenizer(plain: Any) -> str:
    """Return llama.cpp's name of the pre-tokenizer.

    Args:
        plain: the content of tokenizer.json.
    Raises:
        EdgewiseError: E-EXPORT as ``write_gguf_vocabulary``.
    """
    normalizer = (plain.get("normalizer") or {}).get("type")
    steps = plain.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [step.get("type") for step in steps]
    if plain["model"]["type"] != "BPE" or plain["model"].get("byte_fallback") or kinds[-1:] != ["ByteLevel"]:
        raise _refused(f"the tokenizer is no byte-level BPE ({plain['model']['type']}, {kinds})")
    if steps[-1].get("add_prefix_space"):
        raise _refused("the tokenizer puts a space before each text")
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and normalizer is None:
        return NO_SPLIT
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        name = PATTERNS.get(steps[0].get("pattern", {}).get("Regex", ""))
        if name is not None and steps[0].get("behavior") == "Isolated" and normalizer in (None, "NFC"):
            return name
    raise _refused("the pre-tokenizer of this tokenizer has no name in llama.cpp that edgewise knows")


def _refused(what: str) -> EdgewiseError:
    return EdgewiseError("E-EXPORT", f"{what}, so the exported model would read other tokens.", ELSEWHERE)
