"""Text to token ids. Nothing here needs torch, so a corpus can be cut into blocks without it."""

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
    """A fast tokenizer as the corpus needs it: text -> ids, the ids around a document, a digest for cache keys.

    Special tokens that happen to stand in a text are encoded as ordinary text: data cannot forge a document boundary.
    A tokenizer's file may keep settings of an earlier use. They are reset: every text is read whole, and always alike.

    Attributes:
        notes: what was reset, as sentences for people.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.encode_special_tokens = True
        self.notes = _reset(self._backend)
        self.end: int | None = tokenizer.eos_token_id
        self.start: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else self.end
        self.size = len(tokenizer)
        self.template = chat.Template(tokenizer) if getattr(tokenizer, "chat_template", None) else None
        self.digest = hashlib.sha256(f"{self.start} {self.end} {self._backend.to_str()}".encode()).hexdigest()

    def encode(self, texts: Sequence[str], limit: int = 0) -> list[Array]:
        """int32[n] for each text, without special tokens.

        A text of more than a megabyte goes in parts, cut after a line, so that memory stays small. ``limit``: of each
        text's tokens at least so many are wanted, and the parts after them may be left out; 0 = all.
        """
        ids: list[list[Array]] = [[] for _ in texts]
        left = {i: _parts(text) for i, text in enumerate(texts)}
        while left:
            parts = {i: part for i, more in left.items() if (part := next(more, None)) is not None}
            encodings = self._backend.encode_batch_fast(list(parts.values()), add_special_tokens=False)
            for i, encoding in zip(parts, encodings, strict=True):
                ids[i].append(np.array(encoding.ids, np.int32))
            left = {i: left[i] for i in parts if not limit or sum(map(len, ids[i])) < limit}
        return [np.concatenate(p) if p else np.zeros(0, np.int32) for p in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some tokens; special ones are left out."""
        return str(self._backend.decode(list(map(int, ids)), skip_special_tokens=True))

    def characters(self, text: str, n: int) -> int:
        """Of how many characters of ``text`` its first ``n`` tokens are; a character that is cut in two counts."""
        done = 0
        for part in _parts(text):
            encoding = self._backend.encode(part, add_special_tokens=False)
            if len(encoding.ids) >= n:
                return done + (int(encoding.offsets[n - 1][1]) if n else 0)
            done, n = done + len(part), n - len(encoding.ids)
        return done


def _reset(backend: Any) -> tuple[str, ...]:
    """Switch off what would cut, fill or vary a text, and say so.

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
    for knob in ("dropout", "alpha", "nbest_size"):  # BPE-dropout; sampling of a unigram model
        if getattr(backend.model, knob, None):
            setattr(backend.model, knob, None)
            notes.append(f"tokenizer.json asks to split words at random ({knob}); edgewise always splits them alike.")
    return tuple(notes)


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

    with foreign(ModelError, "E-MODEL", f"{folder}: no usable fast tokenizer", "the folder needs a tokenizer.json."):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        return Tokens(tokenizer)
