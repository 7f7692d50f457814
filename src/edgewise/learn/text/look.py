"""Inspect data that nobody has described yet: guess its format, and the columns of owner, text and prompt.

It reads the first rows of some files, and stores no text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.learn.text import containers, headers, packed
from edgewise.learn.text.files import DataListing, kind_of_data_path, named_data_paths
from edgewise.learn.text.rows import csv_rows
from edgewise.learn.text.tables import ENDINGS, decode_table_row
from edgewise.plan.recipe.data import Header
from edgewise.plan.recipe.recipe import DataSection

ROWS = 5000  # So many rows are read.
LEAST_TEXT = 8  # Characters on average. A column of shorter values is text only if its name says so.
Chat = Literal["messages", "other"]
LEAST_REPEATS = 1.5  # Rows of an owner on average. A column of rarer values has owners only if its name says so.


class DataColumn(NamedTuple):
    """A column of a table.

    Attributes:
        name: its name.
        distinct: number of different values.
        repeats: rows of each value on average.
        characters, words: length of its text on average; 0 where some values are not text.
        names: True where its values can name devices.
        chat: ``"messages"`` where its values are lists of role and content, or of from and value, ``"other"`` for lists
            of other objects, else None.
        dates: True where its values are dates.
        header: the reason that its name seems to be data. None where it does not.
    """

    name: str
    distinct: int
    repeats: float
    characters: float
    words: float
    names: bool
    chat: Chat | None = None
    dates: bool = False
    header: str | None = None


class DataLook(NamedTuple):
    """The format and columns of some data.

    Attributes:
        source: format, as ``data.source`` of a recipe.
        columns: its columns. Empty for folders of text.
    """

    source: str
    columns: tuple[DataColumn, ...] = ()

    def texts(self) -> list[str]:
        """Return the columns that may be the text: those with known names first, then the longest before prompts."""
        fit = [
            c
            for c in self.columns
            if c.characters >= (0.1 if headers.is_column_name(c.name, headers.TEXTS) else LEAST_TEXT)
        ]
        prompts = {c.name for c in fit if headers.is_column_name(c.name, headers.PROMPTS)}
        return [
            c.name
            for c in sorted(
                fit, key=lambda c: (headers.column_name_rank(c.name, headers.TEXTS), c.name in prompts, -c.characters)
            )
        ]

    def owners(self, read: Collection[str]) -> list[str]:
        """Return the columns that may name the devices: those with known names first, then those with most values.

        Args:
            read: columns that are the text or its prompt.
        """
        fit = [c for c in self.columns if c.names and c.distinct > 1 and c.name not in read]
        known = [c for c in fit if headers.is_column_name(c.name, headers.OWNERS)]
        likely = [
            c
            for c in fit
            if c.repeats >= LEAST_REPEATS
            and not c.dates
            and c.words < headers.PROSE
            and not headers.is_column_name(c.name, headers.PROMPTS + headers.TEXTS)
        ]
        found = sorted(
            {*known, *likely}, key=lambda c: (headers.column_name_rank(c.name, headers.OWNERS), -c.distinct, c.name)
        )
        return [c.name for c in found]

    def prompts(self, text: str) -> list[str]:
        """Return the columns that may be the prompt of ``text``, the likeliest first, if its name is an answer's."""
        if not headers.is_column_name(text, headers.ANSWERS):
            return []
        fit = [
            c
            for c in self.columns
            if c.characters > 0 and c.name != text and headers.is_column_name(c.name, headers.PROMPTS)
        ]
        return [c.name for c in sorted(fit, key=lambda c: headers.column_name_rank(c.name, headers.PROMPTS))]

    def chats(self, kind: Chat) -> list[str]:
        """Return the columns of chats of this kind (``Column.chat``)."""
        return [c.name for c in self.columns if c.chat == kind]

    def like(self, known: list[str]) -> str | None:
        """Return the first column with one of these names. None where there is none."""
        return min((c.name for c in self.columns if headers.is_column_name(c.name, known)), default=None)


def look_at_data(path: str, base: Path, header: Header = "auto") -> DataLook:
    """Inspect the data at ``path`` by the endings of its files and the first rows of its tables.

    Args:
        path: as ``data.path`` of a recipe.
        base: the folder where a relative path starts.
        header: as ``data.header`` of a recipe.
    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT, E-DATA-EMPTY.
    """
    paths, _ = named_data_paths(path, base, "where you are")
    try:
        listed = DataListing()
        files = list(listed.below(paths[0])) if kind_of_data_path(paths[0]) == "folder" else paths
        if not files:
            raise DataError("E-DATA-EMPTY", f"{path}: there is no file in it.", "name a folder with text or tables.")
        source = Counter(map(_source_of_file, files)).most_common(1)[0][0]
        if source == "text":
            return DataLook(source)
        tables = [f for f in files if _source_of_file(f) == source]
        each = max(20, ROWS // len(tables))
        rows = [row for file in tables[: ROWS // each] for row in islice(_first_rows(source, file, header), each)]
    except OSError as e:
        what = f"{e.filename or path} cannot be read: {e.strerror or e}."
        raise DataError("E-DATA-MISSING", what, "check the path, and that you may read it.") from None
    if not rows:
        raise DataError("E-DATA-EMPTY", f"{path} has no row.", "give a table with some.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [_guessed_column(name, [row.get(name) for row in rows]) for name in names]
    if source == "csv" and header == "auto":
        below = {c.name: [row[c.name] for row in rows[: headers.ROWS] if c.name in row] for c in columns}
        columns = [c._replace(header=headers.header_is_data_reason(c.name, below[c.name])) for c in columns]
    return DataLook(source, tuple(columns))


def _source_of_file(file: Path) -> str:
    """Guess the format of a file by its ending."""
    plain = file.with_suffix("") if packed.is_compressed_text(file) else file
    ending = plain.suffix.lower()
    if ending == ".txt":  # Such a file is a table only where a recipe says so.
        return "text"
    return next((source for source, endings in ENDINGS.items() if ending in endings), "text")


def _first_rows(source: str, file: Path, header: Header) -> Iterator[dict[str, Any]]:
    """Read rows of a table that nobody has described yet."""
    if source != "parquet":
        containers.refuse_container_file(file, file.name)
    if source == "jsonl":
        for number, raw in enumerate(packed.lines(file), 1):
            if raw.strip():
                yield _flat_row(decode_table_row(raw.removeprefix(b"\xef\xbb\xbf"), f"{file.name}:{number}"))
    elif source == "csv":
        open_section = DataSection.model_construct(source="csv", text="", header=header)
        yield from (row for _, row in csv_rows(open_section, file, file.name) if row is not None)
    else:
        try:
            from pyarrow import parquet
        except ImportError:
            raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
        with foreign(DataError, "E-DATA-FORMAT", f"{file.name}: not a readable Parquet file", "write it again."):
            batch = next(parquet.ParquetFile(file).iter_batches(batch_size=ROWS), None)
            yield from batch.to_pylist() if batch is not None else ()


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a row, so that values of nested objects have their paths for names (``meta.shop``)."""
    out: dict[str, Any] = {}
    for name, value in row.items():
        inner = _flat_row(value) if isinstance(value, dict) else {"": value}
        out |= {f"{name}.{path}" if path else name: found for path, found in inner.items()}
    return out


def _guessed_column(name: str, values: list[Any]) -> DataColumn:
    """Describe a column by its first values."""
    plain = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    filled = [v for v in plain if v is not None]
    texts = [v for v in filled if isinstance(v, str)]
    names = all(
        isinstance(v, str | int) and not isinstance(v, bool) and 0 < len(str(v)) <= headers.LONGEST_OWNER for v in plain
    )
    distinct = len({str(v) for v in filled})
    whole = bool(filled) and len(texts) == len(plain)
    length = fmean(map(len, texts)) if whole else 0.0
    words = fmean(len(v.split()) for v in texts) if whole else 0.0
    dates = whole and all(map(headers.is_date, texts))
    repeats = len(filled) / max(1, distinct)
    return DataColumn(name, distinct, repeats, length, words, bool(filled) and names, _chat_kind(filled), dates)


def _chat_kind(values: list[Any]) -> Chat | None:
    """Return the ``Column.chat`` of a column, by its first values."""
    first = [v for v in values[:20] if v != []]
    if not first or not all(isinstance(v, list) and all(isinstance(one, dict) for one in v) for v in first):
        return None
    pairs = (("role", "content"), ("from", "value"))
    complete = any(all(isinstance(one.get(key), str) for v in first for one in v for key in pair) for pair in pairs)
    return "messages" if complete else "other"
