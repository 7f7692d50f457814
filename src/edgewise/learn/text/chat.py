"""Render chats with the chat template of the model's tokenizer. Answers are learnt, and everything else is only read.

    messages            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    rendered            <|user|>hi<|assistant|>yes?<|end|>
    learnt              ^ read             ^ learnt

A template that marks answers itself, between ``{% generation %}`` and ``{% endgeneration %}``, decides what is learnt.

Without such marks an answer begins where the template's generation prompt (``add_generation_prompt``) ends, as in use
of the model. It ends where the next message begins, so the token that ends a turn is learnt. A chat is one row with all
of its answers. Some templates render an earlier answer differently from the last one, for example without its
reasoning. Then every answer is a row of its own, after the messages before it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Array

ANSWER = "assistant"
PROBE = "an answer that no template writes"
MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
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


class Template:
    """The chat template of a tokenizer.

    It encodes special tokens that the template writes. A message that spells one is refused, so no message can forge
    the template's own tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._backend = tokenizer, tokenizer.backend_tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        self._marks = MARKS.search(str(tokenizer.chat_template)) is not None
        self.digest = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()  # for cache keys
        self._special = {str(t) for t in added if t.special} | set(tokenizer.all_special_tokens)

    def rows(self, packed: str, where: str, last: bool = False) -> list[ChatTokens]:
        """Encode one packed chat (``messages.pack_chat``) as one row, or one row for each answer. Without an answer
        none.

        Args:
            last: True learns the last answer of the chat alone.
        Raises:
            DataError: E-DATA-FORMAT where the template refuses the messages, marks no answer of them, or one of them
                spells a special token.
        """
        chat = msgspec.json.decode(packed)
        found: list[Message] = chat["messages"]
        tools: list[Any] | None = chat["tools"]
        self._refuse_forged(found, where, tools)
        at = [i for i, message in enumerate(found) if message["role"] == ANSWER]
        if not at:
            return []
        if self._marks:
            return [self._marked_answers(found[: at[-1] + 1], tools, where, last)]
        parts = [self._chat_parts(found[: i + 1], tools, where) for i in (at[-1:] if last else at)]
        whole = "".join(part.text for part in parts[-1])
        if all(whole.startswith("".join(p.text for p in pair)) for pair in parts):
            return [self._encoded_row(_joined_answers(parts))]
        return [self._encoded_row(pair) for pair in parts]

    def _marked_answers(self, found: list[Message], tools: list[Any] | None, where: str, last: bool) -> ChatTokens:
        """Encode a chat as a whole. Tokens that begin or end within a marked answer are learnt."""
        why, fix = f"{where}: the model's chat template refuses the messages", "correct them, or drop the row."
        try:
            with foreign(DataError, "E-DATA-FORMAT", why, fix):
                out = self._tokenizer.apply_chat_template(
                    found, tools=tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
        finally:
            self._backend.encode_special_tokens = True
        ids, learnt = np.array(out["input_ids"], np.int32), np.array(out["assistant_masks"], bool)
        learnt[:1] = False
        if not learnt.any():
            what = (
                f"{where}: the chat template has {{% generation %}} marks, and none of them is around an answer here."
            )
            raise DataError(
                "E-DATA-FORMAT", what, "mark the assistant's messages in the template, or take out the marks."
            )
        if last:
            stop = len(learnt) - int(learnt[::-1].argmax())
            gaps = np.flatnonzero(~learnt[:stop])
            learnt[: gaps[-1]] = False
        return ChatTokens(ids, learnt)

    def asked(self, found: Sequence[Message]) -> list[int]:
        """Encode a chat up to the place where the next answer begins, as the model read it in training.

        Raises:
            DataError: E-DATA-FORMAT as ``rows``.
        """
        self._refuse_forged(found, "the chat")
        return self._encoded_text(self._rendered_chat(list(found), None, "the chat", invited=True))

    def ends(self) -> list[int]:
        """Return the special token that the template writes after an answer. Empty where it writes none there."""
        turn = [{"role": "user", "content": "question"}, {"role": ANSWER, "content": PROBE}]
        _, found, ending = self._rendered_chat(turn, None, "the chat").rpartition(PROBE)
        after = self._encoded_text(ending) if found else []
        return [token for token in after[:1] if self._tokenizer.convert_ids_to_tokens(token) in self._special]

    def _refuse_forged(self, found: Sequence[Message], where: str, tools: list[Any] | None = None) -> None:
        for i, message in enumerate([*found, *(tools or [])]):
            if spelt := next(
                (token for text in _texts_in_json(message) for token in self._special if token in text), None
            ):
                of = f"message {i + 1}" if i < len(found) else f"tool {i + 1 - len(found)}"
                what = f"{where}: {of} spells {spelt!r}, which the chat template writes between messages."
                raise DataError("E-DATA-FORMAT", what, "take it out of the text, or drop the row.")

    def _encoded_text(self, text: str) -> list[int]:
        """Encode rendered text with the special tokens that the template wrote."""
        self._backend.encode_special_tokens = False
        try:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        finally:
            self._backend.encode_special_tokens = True

    def _chat_parts(self, found: list[Message], tools: list[Any] | None, where: str) -> list[ChatPart]:
        """Split a chat whose last message is an answer into the part that is read and the part that is learnt."""
        whole = self._rendered_chat(found, tools, where)
        for invited in (True, False):
            before = self._rendered_chat(found[:-1], tools, where, invited) if found[:-1] or invited else ""
            if whole.startswith(before):
                return [ChatPart(before, False), ChatPart(whole[len(before) :], True)]
        what = f"{where}: the chat template rewrites the messages before message {len(found)}."
        raise DataError("E-DATA-FORMAT", what, "write prompt and text columns in place of the messages.")

    def _rendered_chat(self, found: list[Message], tools: list[Any] | None, where: str, invited: bool = False) -> str:
        """Render messages by the template. Raises DataError where it refuses them."""
        why, fix = f"{where}: the model's chat template refuses the messages", "correct them, or drop the row."
        with foreign(DataError, "E-DATA-FORMAT", why, fix):
            rendered = self._tokenizer.apply_chat_template(
                found, tools=tools, tokenize=False, add_generation_prompt=invited
            )
        return str(rendered)

    def _encoded_row(self, parts: Sequence[ChatPart]) -> ChatTokens:
        """Encode each part by itself, because a model in use reads the text before an answer by itself."""
        encoded = [self._encoded_text(part.text) for part in parts]
        learnt = np.repeat([part.learnt for part in parts], [len(ids) for ids in encoded])
        learnt[:1] = False
        return ChatTokens(np.concatenate([np.array(ids, np.int32) for ids in encoded]), learnt)


def _joined_answers(parts: Sequence[Sequence[ChatPart]]) -> list[ChatPart]:
    """Join the parts of a chat's answers into one sequence. Each part leaves out the text of the parts before it."""
    out: list[ChatPart] = []
    done = 0
    for before, answer in parts:
        out += [ChatPart(before.text[done:], False), answer]
        done = len(before.text) + len(answer.text)
    return out


def _texts_in_json(value: Any) -> Iterator[str]:
    """Yield all texts in a value of JSON, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts_in_json(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts_in_json(inner)
