"""Convert text to token ids and back. It does not import torch, so a corpus can be cut into blocks without it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.core.vector import Array
from edgewise.learn.text import chat


class Tokens:
    """A fast tokenizer for a corpus.

    Special tokens in a text are encoded as ordinary text, so data cannot forge the end of a document. Settings of an
    earlier use in a tokenizer's file are reset, so every text is read whole, and always in the same way.

    Attributes:
        notes: sentences about the settings that were reset.
        start, end: ids before and after a document. None where the tokenizer has none.
        size: number of tokens that it knows.
        template: its chat template. None without one.
        digest: digest of the tokenizer, for cache keys.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self.notes = _reset_backend(self._backend)
        self.end: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        self.size = len(tokenizer)
        self.template = chat.Template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self.digest = hashlib.sha256(f"{self.start} {self.end} {self._backend.to_str()}".encode()).hexdigest()

    def encode(self, texts: Sequence[str], limit: int = 0) -> list[Array]:
        """Encode each text to int32[n], without special tokens.

        A text above a megabyte is encoded in parts, cut after a line, so that memory stays small.

        Args:
            limit: number of tokens that are needed of each text. Parts after them may be left out. 0 = all.
        """
        ids: list[list[Array]] = [[] for _ in texts]
        waiting = {i: _text_parts(text) for i, text in enumerate(texts)}
        while waiting:
            parts = {i: part for i, more in waiting.items() if (part := next(more, None)) is not None}
            encodings = self._backend.encode_batch_fast(list(parts.values()), add_special_tokens=False)
            for i, encoding in zip(parts, encodings, strict=True):
                ids[i].append(np.array(encoding.ids, np.int32))
            waiting = {i: waiting[i] for i in parts if not limit or sum(map(len, ids[i])) < limit}
        return [np.concatenate(p) if p else np.zeros(0, np.int32) for p in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens to text. Special tokens are left out."""
        return str(self._backend.decode(list(map(int, ids)), skip_special_tokens=True))

    def piece(self, decoding: Any, token: int) -> str | None:
        """Decode one more token of a text that appears token by token. None while a character is incomplete.

        Args:
            decoding: ``tokenizers.decoders.DecodeStream``, which keeps the tokens before it.
        """
        piece: str | None = decoding.step(self._backend, int(token))
        return piece

    def length_of_first(self, text: str, n: int) -> int:
        """Count the characters of ``text`` in its first ``n`` tokens. A character that is cut in two counts."""
        done = 0
        for part in _text_parts(text):
            encoding = self._backend.encode(part, add_special_tokens=False)
            if len(encoding.ids) >= n:
                return done + (int(encoding.offsets[n - 1][1]) if n else 0)
            done, n = done + len(part), n - len(encoding.ids)
        return done


def _reset_backend(backend: Any) -> tuple[str, ...]:
    """Switch off settings that would cut, pad or vary a text, and return a sentence for each.

    One call such as ``tokenizer(text, truncation=True, padding="max_length")`` before ``save_pretrained`` leaves
    truncation and padding in tokenizer.json.
    """
    notes = []
    if backend.truncation:
        longest = backend.truncation["max_length"]
        notes.append(f"tokenizer.json asks to cut texts after {longest} tokens; edgewise reads them whole.")
        backend.no_truncation()
    if backend.padding:
        notes.append("tokenizer.json asks to fill texts up with padding; edgewise adds none.")
        backend.no_padding()
    for knob in ("dropout", "alpha", "nbest_size"):  # These are BPE-dropout, and sampling of a unigram model.
        if getattr(backend.model, knob, None):
            setattr(backend.model, knob, None)
            notes.append(f"tokenizer.json asks to split words at random ({knob}); edgewise always splits them alike.")
    return tuple(notes)


def _text_parts(text: str, size: int = 1 << 20) -> Iterator[str]:
    """Yield parts of a text, cut at line ends, that are tokenized apart."""
    at = 0
    while at < len(text):
        stop = min(at + size, len(text))
        after_line = text.rfind("\n", at, stop) + 1 if stop < len(text) else 0
        stop = after_line or stop
        yield text[at:stop]
        at = stop


def load_tokenizer(folder: Path) -> Tokens:
    """Load the fast tokenizer of a model folder. Raises ModelError(E-MODEL)."""
    from transformers import AutoTokenizer

    with foreign(ModelError, "E-MODEL", f"{folder}: no usable fast tokenizer", "the folder needs a tokenizer.json."):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return Tokens(tokenizer)
