"""Text to token ids. Nothing here needs torch, so a corpus can be cut into blocks without it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.errors import ModelError
from edgewise.core.vector import Array


class Tokens:
    """A fast tokenizer as the corpus needs it: text -> ids, the ids around a document, a digest for cache keys.

    Special tokens that happen to stand in a text are encoded as ordinary text: data cannot forge a document boundary.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self.end: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        self.size = len(tokenizer)
        self.digest = hashlib.sha256(f"{self.start} {self.end} {self._backend.to_str()}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[Array]:
        """int32[n] for each text, without special tokens.

        A text of more than a megabyte goes in parts, cut after a line, so that memory stays small.
        """
        parts = [(i, part) for i, text in enumerate(texts) for part in _parts(text)]
        encodings = self._backend.encode_batch_fast([part for _, part in parts], add_special_tokens=False)
        ids: list[list[Array]] = [[] for _ in texts]
        for (i, _), encoding in zip(parts, encodings, strict=True):
            ids[i].append(np.array(encoding.ids, np.int32))
        return [np.concatenate(p) if p else np.zeros(0, np.int32) for p in ids]


def _parts(text: str, size: int = 1 << 20) -> Iterator[str]:
    at = 0
    while at < len(text):
        stop = min(at + size, len(text))
        after_line = text.rfind("\n", at, stop) + 1 if stop < len(text) else 0
        stop = after_line or stop
        yield text[at:stop]
        at = stop


def load(folder: Path) -> Tokens:
    """The fast tokenizer of a model folder. Raises ModelError: E-MODEL."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return Tokens(tokenizer)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as e:
        fix = "the folder needs a tokenizer.json."
        raise ModelError("E-MODEL", f"{folder}: no usable fast tokenizer: {first_line(e)}.", fix) from None
    except Exception as e:  # boundary: the Rust tokenizers raise plain Exception for damaged files
        raise ModelError("E-MODEL", f"{folder}: damaged tokenizer: {first_line(e)}.") from None


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, short enough for ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
