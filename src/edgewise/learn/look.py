"""A first look into data that nobody has described yet: its format, its columns, and which of them may be the owner and
the text. Reads the first rows of some files, and keeps no text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.learn import containers, packed
from edgewise.learn.files import Listing, kind_of, named
from edgewise.learn.rows import SEPARATORS, csv_rows
from edgewise.learn.tables import ENDINGS, decode
from edgewise.plan.recipe import DataSection

ROWS = 5000  # that are looked at
LONGEST_OWNER = 80  # characters; a longer value names nobody
LEAST_TEXT = 8  # characters on average; a column of shorter values is no text
OWNERS = (
    "owner user speaker author patient ward device client site hospital customer account person member name".split()
)
TEXTS = "text content note body message utterance document answer response output summary".split()
PROMPTS = "prompt question instruction dialogue context input".split()
TIMES = "time date timestamp datetime created created_at day".split()


class Column(NamedTuple):
    """A column of a table: how many different values it has, how often each stands on average, characters of text on
    average (0 where it has other values than text), and whether its values can name devices."""

    name: str
    distinct: int
    repeats: float
    characters: float
    names: bool


class Look(NamedTuple):
    """What was found: ``source`` as in a recipe, and the columns (none in folders of text)."""

    source: str
    columns: tuple[Column, ...] = ()

    def owners(self) -> list[str]:
        """Columns whose values may be the devices, the likeliest first: known names, then those that repeat most."""
        fit = [c for c in self.columns if c.names and c.distinct > 1 and c.name not in self.texts()[:1]]
        return [c.name for c in sorted(fit, key=lambda c: (_rank(c.name, OWNERS), c.repeats < 1.5, -c.repeats))]

    def texts(self) -> list[str]:
        """Columns that may be the text, the likeliest first: known names, then the longest."""
        fit = [c for c in self.columns if c.characters >= LEAST_TEXT]
        return [c.name for c in sorted(fit, key=lambda c: (_rank(c.name, TEXTS), -c.characters))]

    def like(self, known: list[str]) -> str:
        """The first column with one of these names; empty where there is none."""
        return min((c.name for c in self.columns if _rank(c.name, known) < len(known)), default="")


def _rank(name: str, known: list[str]) -> int:
    """Place of the first known word that is the name or a part of it (``user_id``); ``len(known)`` where none is."""
    parts = name.lower().replace("-", "_").split("_")
    return next((i for i, word in enumerate(known) if word in parts), len(known))


def look(path: str, base: Path) -> Look:
    """What ``data.path`` holds, by the endings of its files and the first rows of its tables.

    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT, E-DATA-EMPTY.
    """
    paths, _ = named(path, base)
    try:
        listed = Listing()
        files = list(listed.below(paths[0])) if kind_of(paths[0]) == "folder" else paths
        if not files:
            raise DataError("E-DATA-EMPTY", f"{path}: there is no file in it.", "name a folder with text or tables.")
        source = Counter(map(_source, files)).most_common(1)[0][0]
        if source == "text":
            return Look(source)
        tables = [f for f in files if _source(f) == source]
        each = max(20, ROWS // len(tables))
        rows = [row for file in tables[: ROWS // each] for row in islice(_rows(source, file), each)]
    except OSError as e:
        raise DataError("E-DATA-MISSING", f"{e.filename or path} cannot be read: {e.strerror or e}.", "") from None
    if not rows:
        raise DataError("E-DATA-EMPTY", f"{path} has no row.", "give a table with some.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Look(source, tuple(_column(name, [row.get(name) for row in rows]) for name in names))


def _source(file: Path) -> str:
    plain = file.with_suffix("") if packed.is_packed(file) else file
    ending = plain.suffix.lower()
    if ending == ".txt":  # a table only where a recipe says so
        return "text"
    return next((source for source, endings in ENDINGS.items() if ending in endings), "text")


def _rows(source: str, file: Path) -> Iterator[dict[str, Any]]:
    if source != "parquet":
        containers.refuse_file(file, file.name)
    if source == "jsonl":
        for number, raw in enumerate(packed.lines(file), 1):
            if raw.strip():
                yield decode(raw.removeprefix(b"\xef\xbb\xbf"), f"{file.name}:{number}")
    elif source == "csv":
        open_section = DataSection.model_construct(source="csv", text="", separator=_separator(file))
        yield from (row for _, row in csv_rows(open_section, file, file.name) if row is not None)
    else:
        try:
            from pyarrow import parquet
        except ImportError:
            raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
        with foreign(DataError, "E-DATA-FORMAT", f"{file.name}: not a readable Parquet file", "write it again."):
            batch = next(parquet.ParquetFile(file).iter_batches(batch_size=ROWS), None)
            yield from batch.to_pylist() if batch is not None else ()


def _separator(file: Path) -> str:
    """The separator by which the header has most columns."""
    header = next((raw for raw in packed.lines(file) if raw.strip()), b"").decode("utf-8-sig", "replace")
    return max(SEPARATORS, key=lambda s: (len(next(csv.reader([header], delimiter=s), [])), -SEPARATORS.index(s)))


def _column(name: str, values: list[Any]) -> Column:
    plain = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
    given = [v for v in plain if v is not None]
    texts = [v for v in given if isinstance(v, str)]
    names = all(
        isinstance(v, str | int) and not isinstance(v, bool) and 0 < len(str(v)) <= LONGEST_OWNER for v in plain
    )
    distinct = len({str(v) for v in given})
    whole = bool(given) and len(texts) == len(plain)
    length = fmean(map(len, texts)) if whole else 0.0
    return Column(name, distinct, len(given) / max(1, distinct), length, bool(given) and names)
