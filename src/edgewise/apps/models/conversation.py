"""A chat with one or several models, each with its own answers, by the chat template of the tokenizer.

chat = Conversation(used, ["global", "base"], Decoding())
chat.ask("hello", "global", print)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from edgewise.apps.models.in_use import UsedModel
from edgewise.core.errors import ModelError
from edgewise.core.foreign import foreign
from edgewise.learn.models.streaming import Decoding, GeneratedText, room_for_tokens, stream
from edgewise.learn.text.chat import ANSWER, Message, Template

ANSWER_ROOM = 32  # Old messages are dropped until the model has room for so many new tokens, or for all that are asked.


class Conversation:
    """A chat. The models answer the same messages, and each reads its own answers.

    Attributes:
        template: the chat template.
        dropped: the number of messages that the last answer's model no longer read, because its context was full.
    Raises:
        ModelError: E-MODEL for a model without a chat template, unless ``jinja`` names a file with one.
        EdgewiseError: E-USE for a model that is not there.
    """

    def __init__(
        self, used: UsedModel, names: Sequence[str], settings: Decoding, system: str = "", jinja: Path | None = None
    ) -> None:
        self._used, self._settings = used, settings
        self.template = _chat_template(used, jinja)
        self._ends, self.dropped = self.template.ends(), 0
        for name in names:
            used.turn_to(name)
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self._turns: dict[str, list[Message]] = {name: [] for name in names}

    def ask(self, text: str, name: str, show: Callable[[str], object]) -> GeneratedText:
        """Ask a model. An answer that Ctrl-C ends stays in the chat as far as it came.

        Raises:
            DataError: E-DATA-FORMAT where the template refuses the message. The chat is then as before.
            EdgewiseError: E-USE where the message alone fills the model's context. The chat is then as before.
        """
        self._used.turn_to(name)
        turns: list[Message] = [*self._turns[name], {"role": "user", "content": text}]
        ids = self.template.asked([*self._system, *turns])
        wanted, before = min(ANSWER_ROOM, self._settings.max_tokens), len(turns)
        while (
            len(turns) > 1 and (tokens := room_for_tokens(self._used.model, len(ids))) is not None and tokens < wanted
        ):
            turns = turns[2:]  # A question and its answer.
            ids = self.template.asked([*self._system, *turns])
        answer = stream(self._used.model, self._used.tokens, ids, self._settings, show, self._ends)
        self.dropped = before - len(turns)
        self._turns[name] = [*turns, {"role": ANSWER, "content": answer.text}]
        return answer


def _chat_template(used: UsedModel, jinja: Path | None) -> Template:
    """Load the chat template: the given one, or the model's own."""
    if jinja is not None:
        from transformers import AutoTokenizer

        with foreign(ModelError, "E-MODEL", f"the chat template {jinja} cannot be read", "name a Jinja file."):
            tokenizer = AutoTokenizer.from_pretrained(used.loaded.folder, local_files_only=True)
            tokenizer.chat_template = jinja.read_text(encoding="utf-8")
            return Template(tokenizer)
    if used.tokens.template is None:
        what = f"{used.loaded.name} has no chat template, so nothing says how a question and an answer are written."
        fix = "use `edgewise generate`, or name the Jinja file of the template that it was trained with: --template."
        raise ModelError("E-MODEL", what, fix)
    return used.tokens.template
