"""Read the rows of a file for an evaluation: texts, prompts with answers, chats, and questions with choices.

    {"text": "..."}                                              a text, for its perplexity
    {"prompt": "...", "text": "..."}                             an answer, for its perplexity and for generation
    {"messages": [{"role": "user", "content": "..."}, ...]}      a chat, for the perplexity of its answers
    {"question": "...", "choices": ["...", "..."], "answer": 0}  multiple choice; the answer is a place or the text

A file is JSON lines, CSV or Parquet. Another one is one text. An ``owner`` column names the device of a row.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.learn.text import messages
from edgewise.learn.text.tables import decode_table_row

KEYS = ("text", "prompt", "messages", "question", "choices", "answer", "owner")
EVERYBODY = "all"  # The owner of rows without one.


class EvaluationRow(NamedTuple):
    """A row.

    Attributes:
        where: its place, for messages.
        owner: the device.
        plain: the row as it was read.
        text, prompt: None where it has none.
        chat: a packed chat (``messages.pack_chat``) and the text of its answers. None where it has none.
        choices: of multiple choice. ``prompt`` is the question then, and ``answer`` the place of the right choice.
    """

    where: str
    owner: str
    plain: Mapping[str, Any]
    text: str | None = None
    prompt: str | None = None
    chat: tuple[str, str] | None = None
    choices: tuple[str, ...] = ()
    answer: int = 0

    def __repr__(self) -> str:
        return f"EvaluationRow(where={self.where!r}, owner={self.owner!r})"


def read_evaluation_rows(path: Path, columns: Mapping[str, str]) -> list[EvaluationRow]:
    """Read all evaluation rows of a file.

    Args:
        columns: column names in place of those of ``KEYS``, by key.
    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT with the row, E-DATA-COLUMN, E-DATA-EMPTY.
    """
    if not path.is_file():
        raise DataError("E-DATA-MISSING", f"there is no file {path}.", "name a file with --on.")
    if unknown := sorted(columns.keys() - set(KEYS)):
        what = f"an evaluation reads no column {unknown[0]!r:.60}."
        raise DataError("E-DATA-COLUMN", what, f"take one of these keys: {', '.join(KEYS)}.")
    names = {key: columns.get(key, key) for key in KEYS}
    found, first = [], True
    for where, plain in _plain_rows(path):
        for key, name in columns.items() if first else ():
            if name not in plain:
                what = f"{where}: `{name}` ({key}) is not a column."
                raise DataError("E-DATA-COLUMN", what, f"columns: {', '.join(map(str, plain)) or 'none'}.")
        first = False
        found.append(_evaluation_row(where, plain, names))
    if not found:
        raise DataError("E-DATA-EMPTY", f"{path} has no row.", "give a file with one row or more.")
    return found


def _plain_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each row with its place."""
    kind, name = path.suffix.lower(), path.name
    if kind in (".jsonl", ".ndjson", ".jl", ".json"):
        for number, raw in enumerate(path.read_bytes().splitlines(), 1):
            if raw.strip():
                yield f"{name}:{number}", decode_table_row(raw.removeprefix(b"\xef\xbb\xbf"), f"{name}:{number}")
    elif kind == ".csv":
        csv.field_size_limit(2**31 - 1)
        unread = foreign(DataError, "E-DATA-FORMAT", f"{name} is not readable CSV", "save it as UTF-8 with a header.")
        with unread, path.open(encoding="utf-8-sig", newline="") as f:
            rows = list(csv.DictReader(f, strict=True))
        for number, row in enumerate(rows, 1):
            if None in row or None in row.values():
                raise DataError("E-DATA-FORMAT", f"{name} row {number} has another number of fields.", "correct it.")
            yield f"{name} row {number}", row
    elif kind in (".parquet", ".pq"):
        try:
            from pyarrow import parquet
        except ImportError:
            raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
        with foreign(DataError, "E-DATA-FORMAT", f"{name} is not a readable Parquet file", "write it again."):
            rows = parquet.ParquetFile(path).read().to_pylist()
        yield from ((f"{name} row {number}", row) for number, row in enumerate(rows, 1))
    else:
        with foreign(DataError, "E-DATA-FORMAT", f"{name} is not text", "save it as UTF-8."):
            text = path.read_text(encoding="utf-8-sig")
        yield name, {"text": text}


def _evaluation_row(where: str, plain: Mapping[str, Any], names: Mapping[str, str]) -> EvaluationRow:
    """Read a row's text, prompt, chat or question. Raises DataError with its place."""

    def text(key: str) -> str | None:
        value = plain.get(names[key])
        if value is not None and not isinstance(value, str):
            what = f"{where}: `{names[key]}` is {type(value).__name__}, not text."
            raise DataError("E-DATA-FORMAT", what, f"write it as text, or name another column: --column {key}=NAME.")
        return value or None

    owner = str(plain.get(names["owner"]) or EVERYBODY)
    if plain.get(names["choices"]) is not None:
        return _choice_row(where, owner, plain, names, text("question") or text("prompt"))
    if plain.get(names["messages"]) is not None:
        packed = messages.pack_chat(messages.chat_messages(plain[names["messages"]], names["messages"], where))
        return EvaluationRow(where, owner, plain, chat=packed)
    if not text("text"):
        wanted = ", ".join(names[key] for key in ("text", "messages", "choices"))
        raise DataError("E-DATA-FORMAT", f"{where} has no {wanted}.", "name the columns: --column text=NAME.")
    return EvaluationRow(where, owner, plain, text("text"), text("prompt"))


def _choice_row(
    where: str, owner: str, plain: Mapping[str, Any], names: Mapping[str, str], question: str | None
) -> EvaluationRow:
    """Read a question with choices. Raises DataError with its place."""
    choices, answer = plain[names["choices"]], plain.get(names["answer"])
    if isinstance(choices, str):
        with foreign(DataError, "E-DATA-FORMAT", f"{where}: the choices are no JSON list", "write a list of texts."):
            choices = json.loads(choices)
    texts = isinstance(choices, list) and len(choices) > 1 and all(isinstance(c, str) and c for c in choices)
    if not texts or not question:
        what = f"{where} needs a question and two choices or more."
        raise DataError("E-DATA-FORMAT", what, "write a question, a list of texts, and the answer.")
    place = choices.index(answer) if answer in choices else answer
    if isinstance(place, str) and place.isdecimal():
        place = int(place)
    if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(choices):
        what = f"{where}: the answer {answer!r:.60} is no choice."
        raise DataError("E-DATA-FORMAT", what, "write the text of a choice, or its place from 0.")
    return EvaluationRow(where, owner, plain, prompt=question, choices=tuple(choices), answer=place)
