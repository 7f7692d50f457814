"""Recognise columns by their names, and a row of data in place of a CSV file's header.

The word lists are the usual names of owners, texts, prompts and times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

ROWS = 200  # The values of so many rows are compared with the names above them.
LONGEST_OWNER = 80  # Characters. A longer value is not the name of an owner.
PROSE = 4.0  # Words. A longer value is a text and not the name of an owner.
OWNERS = (
    "owner user speaker author patient ward device client site hospital customer account person member name".split()
)
TEXTS = "text content note body message utterance document answer response output completion summary".split()
ANSWERS = "answer response output completion summary".split()  # These texts answer a prompt.
PROMPTS = "prompt question instruction dialogue context input".split()
TIMES = "time date timestamp datetime created created_at day".split()
STOPS = (".", "!", "…", "。")
_NUMBER = re.compile(r"[-+]?\d+([.,]\d+)?$")
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}\b")


def is_column_name(name: str, words: Sequence[str]) -> bool:
    """Tell whether a column has one of these words for a name."""
    return column_name_rank(name, words) < len(words)


def column_name_rank(name: str, words: Sequence[str]) -> int:
    """Return the place of the first word that is the name or a part of it (``user_id``, ``meta.user``).

    Edge cases: ``len(words)`` where none is.
    """
    parts = name.lower().replace("-", "_").replace(".", "_").split("_")
    return next((i for i, word in enumerate(words) if word in parts), len(words))


def is_date(value: str) -> bool:
    """Tell whether a value looks like a date: ``2024-01-31``, ``31.1.24 10:00``."""
    return _DATE.match(value) is not None


def numbered_columns(width: int) -> list[str]:
    """Return the column names of a table without a header: ``"1"``, ``"2"``, ..."""
    return [str(number) for number in range(1, width + 1)]


def header_is_data_reason(name: str, values: Sequence[str]) -> str | None:
    """Return the reason that a column's name seems to be data, from the values below it. None where it does not.

    This is a guess, and ``data.header`` overrules it. A first row whose owner and text are short, and do not occur
    again, looks like names.
    """
    digits = any(c.isdigit() for c in name)  # "user_1" is a person, and "user" is a column.
    if not digits and is_column_name(name, [*OWNERS, *TEXTS, *PROMPTS, *TIMES]) and len(name.split()) < PROSE:
        return None
    filled = [v for v in values if v]
    if not filled:
        return None
    if len(name) > LONGEST_OWNER or "\n" in name:
        return f"it has {len(name)} characters"
    if name in filled:
        return "it is a value of the column too"
    words = len(name.split())
    if words >= PROSE and not name.endswith("?") and len(name) >= fmean(map(len, filled)) / 2:
        return "it is as long as the texts below it"
    if words > 1 and name.endswith(STOPS) and sum(v.endswith(STOPS) for v in filled) > len(filled) / 2:
        return "it ends as the sentences below it do"
    for pattern, kind in ((_NUMBER, "number"), (_DATE, "date")):
        if pattern.match(name):
            every = all(map(pattern.match, filled))
            return f"it is a {kind}, as all values below it are" if every else None
    if digits and {_text_shape(v) for v in filled} == {_text_shape(name)}:
        return "it is spelt as all values below it are"
    return None


def _text_shape(value: str) -> str:
    """Reduce a value to its shape: every number to 9."""
    return re.sub(r"\d+", "9", value)
