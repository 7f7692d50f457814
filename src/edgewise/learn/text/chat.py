"""Render chats with the chat template of the model's tokenizer. Answers are learnt, and everything else is only read.

    messages            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    rendered            <|user|>hi<|assistant|>yes?<|end|>
    learnt              ^ read             ^ learnt

An answer begins where the template's generation prompt (``add_generation_prompt``) ends, as in use of the model. It
ends where the next message begins, so the token that ends a turn is learnt. A chat is one row with all of its answers.
Some templates render an earlier answer differently from the last one, for example without its reasoning. Then every
answer is a row of its own, after the messages before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Array

ANSWER = "assistant"
Message = dict[str, Any]


class ChatPart(NamedTuple):
    """A part of a rendered chat. ``learnt`` is True for an answer."""

    text: str
    learnt: bool

    def __repr__(self) -> str:
        return f"Part(text=<{len(self.text)} characters>, learnt={self.learnt})"


class ChatTokens(NamedTuple):
    """A chat's tokens (int32), and the mask of those that are learnt (bool). The first token is never learnt."""

    ids: Array
    learnt: Array

    __repr__ = outline


def messages(value: Any, name: str, where: str) -> list[Message]:
    """Check the messages of a row and return them. Raises DataError(E-DATA-FORMAT) for anything else."""
    fix = 'write a list of {"role": ..., "content": ...}, both of them text.'
    if not isinstance(value, list) or not value:
        kind = "an empty list" if value == [] else type(value).__name__
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is {kind}, not a list of messages.", fix)
    for i, message in enumerate(value):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                what = f"{where}: message {i + 1} of `{name}` has no {key} that is text."
                raise DataError("E-DATA-FORMAT", what, fix)
    return value


def pack(found: Sequence[Message]) -> tuple[str, str]:
    """Pack a chat into a document: its messages as JSON, and the text of its answers."""
    answers = [message["content"] for message in found if message["role"] == ANSWER]
    return msgspec.json.encode(found).decode(), "\n".join(answers)


class Template:
    """The chat template of a tokenizer.

    It encodes special tokens that the template writes. A message that spells one is refused, so no message can forge
    the template's own tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._backend = tokenizer, tokenizer.backend_tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self.digest = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()  # for cache keys
        self._special = {str(t) for t in added if t.special} | set(tokenizer.all_special_tokens)

    def rows(self, packed: str, where: str) -> list[ChatTokens]:
        """Encode one packed chat (``pack``) as one row, or one row for each answer. There is none without an answer.

        Raises:
            DataError: E-DATA-FORMAT where the template refuses the messages, or one of them spells a special token.
        """
        found: list[Message] = msgspec.json.decode(packed)
        self._refuse_forged(found, where)
        at = [i for i, message in enumerate(found) if message["role"] == ANSWER]
        if not at:
            return []
        whole = self._render(found[: at[-1] + 1], where)
        parts = [self._parts(found[: i + 1], where) for i in at]
        if all(whole.startswith("".join(p.text for p in pair)) for pair in parts):
            return [self._row(_together(parts))]
        return [self._row(pair) for pair in parts]

    def asked(self, found: Sequence[Message]) -> list[int]:
        """Encode a chat up to the place where the next answer begins, as the model read it in training.

        Raises:
            DataError: E-DATA-FORMAT as ``rows``.
        """
        self._refuse_forged(found, "the chat")
        return self._encoded(self._render(list(found), "the chat", invited=True))

    def ends(self) -> list[int]:
        """Return the special token that the template writes after an answer. Empty where it writes none there."""
        turn = [{"role": "user", "content": "a"}, {"role": ANSWER, "content": "b"}]
        after = self._encoded(self._parts(turn, "the chat")[1].text.rpartition("b")[2])
        return [token for token in after[:1] if self._tokenizer.convert_ids_to_tokens(token) in self._special]

    def _refuse_forged(self, found: Sequence[Message], where: str) -> None:
        for i, message in enumerate(found):
            if spelt := next((token for token in self._special if token in message["content"]), None):
                what = f"{where}: message {i + 1} spells {spelt!r}, which the chat template writes between messages."
                raise DataError("E-DATA-FORMAT", what, "take it out of the text, or drop the row.")

    def _encoded(self, text: str) -> list[int]:
        """Encode rendered text with the special tokens that the template wrote."""
        self._backend.encode_special_tokens = False
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        finally:
            self._backend.encode_special_tokens = True

    def _parts(self, found: list[Message], where: str) -> list[ChatPart]:
        """Split a chat whose last message is an answer into the part that is read and the part that is learnt."""
        whole = self._render(found, where)
        for invited in (True, False):
            before = self._render(found[:-1], where, invited) if found[:-1] or invited else ""
            if whole.startswith(before):
                return [ChatPart(before, False), ChatPart(whole[len(before) :], True)]
        what = f"{where}: the chat template rewrites the messages before message {len(found)}."
        raise DataError("E-DATA-FORMAT", what, "write prompt and text columns in place of the messages.")

    def _render(self, found: list[Message], where: str, invited: bool = False) -> str:
        why, fix = f"{where}: the model's chat template refuses the messages", "correct them, or drop the row."
        with foreign(DataError, "E-DATA-FORMAT", why, fix):
            return str(self._tokenizer.apply_chat_template(found, tokenize=False, add_generation_prompt=invited))

    def _row(self, parts: Sequence[ChatPart]) -> ChatTokens:
        """Encode each part by itself, because a model in use reads the text before an answer by itself."""
        encoded = [self._encoded(part.text) for part in parts]
        learnt = np.repeat([part.learnt for part in parts], [len(ids) for ids in encoded])
        learnt[:1] = False
        return ChatTokens(np.concatenate([np.array(ids, np.int32) for ids in encoded]), learnt)


def _together(parts: Sequence[Sequence[ChatPart]]) -> list[ChatPart]:
    """Join the parts of a chat's answers into one sequence. Each part leaves out the text of the parts before it."""
    out: list[ChatPart] = []
    done = 0
    for before, answer in parts:
        out += [ChatPart(before.text[done:], False), answer]
        done = len(before.text) + len(answer.text)
    return out
