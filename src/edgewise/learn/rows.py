"""Readers of CSV and Parquet: row by row, the columns of a recipe as text and numbers. What a value means is kept or
the row is refused: nothing is rounded, cut or spelt another way."""

from __future__ import annotations

import csv
import difflib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign, reason
from edgewise.learn import packed
from edgewise.learn.times import stamp
from edgewise.plan.recipe import DataSection

SEPARATORS = (",", ";", "\t", "|")
_QUOTES = 'a " that belongs to the text is written twice (""), and its field stands in quotes.'
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | None]]  # (place for messages, row; None for a blank line)


def columns(section: DataSection) -> list[str]:
    """The columns that a recipe names, sorted."""
    return sorted({name for _, name in section.columns})


def need_columns(section: DataSection, row: Iterable[str], where: str, header: bool = False) -> None:
    """Raises DataError(E-DATA-COLUMN) where a column of the recipe is not among those of ``row``; ``header``: these
    stand in a line of the file, which may lack it."""
    known = list(row)
    for key, name in section.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"columns: {', '.join(known) or 'none'}."
            if header and not near:
                hint += " If this is a row of data, put a line with the columns' names before it."
            raise DataError("E-DATA-COLUMN", f"{where}: data.{key} = `{name}` is not a column.", hint)


def _once(names: Sequence[str], wanted: Sequence[str], where: str) -> None:
    if twice := sorted(name for name, n in Counter(names).items() if n > 1 and name in wanted):
        what = f"{where} names {', '.join(twice[:3])} more than once."
        raise DataError("E-DATA-FORMAT", what, "give every column a name of its own.")


# CSV ------------------------------------------------------------------------------------------------------------------


def csv_rows(section: DataSection, path: Path, name: str) -> Rows:
    """Rows of a CSV file. The separator is ``data.separator`` or the first of , ; tab | by which the header has all
    columns of the recipe. Raises DataError: E-DATA-FORMAT with the line, E-DATA-COLUMN, E-DATA-EMPTY."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    separator = section.separator or _separator(section, path, name)
    reader = csv.reader(_lines(path, name), strict=True, delimiter=separator)
    header = _next(reader, name) or []
    while header == [] and (again := _next(reader, name)) is not None:  # blank lines above
        header = again
    if not header:
        raise DataError("E-DATA-EMPTY", f"{name} is empty: it has no header.", "give a table with one row or more.")
    at = f"{name}:{reader.line_num}"
    _once(header, columns(section), f"{at}: the header")
    need_columns(section, header, at, header=True)
    while (values := _next(reader, name)) is not None:
        where = f"{name}:{reader.line_num}"
        if values and len(values) != len(header):
            said = f"{where}: {len(values)} fields, the header has {len(header)} (separated by {separator!r})."
            raise DataError("E-DATA-FORMAT", said, f"quote fields that contain {separator!r}, or set data.separator.")
        row = dict(zip(header, values, strict=True)) if values else None
        if values == header and len(header) > 1:
            raise DataError("E-DATA-FORMAT", f"{where}: the header stands here again.", "take this line out.")
        if row and section.owner and row[section.owner] == section.owner:
            raise _no_header(section.owner, where, at)
        yield where, row


def _no_header(owner: str, where: str, at: str) -> DataError:
    """The error for an owner that is spelt as its column."""
    what = f"{where}: {owner!r} is an owner here, and the name of the column in {at}, which seems to be a row of data."
    return DataError("E-DATA-FORMAT", what, "put a line with the columns' names first, or rename the column.")


def _separator(section: DataSection, path: Path, name: str) -> str:
    def header(separator: str) -> list[str]:
        lines = (line for line in _lines(path, name) if line.strip())
        try:
            return next(csv.reader(lines, strict=True, delimiter=separator), [])
        except csv.Error:  # quoted fields that are not separated by this
            return []

    found = {separator: header(separator) for separator in SEPARATORS}
    fits = (s for s, names in found.items() if set(columns(section)) <= set(names))
    return next(fits, None) or max(SEPARATORS, key=lambda s: (len(found[s]), -SEPARATORS.index(s)))


def _lines(path: Path, name: str) -> Iterator[str]:
    """The lines of a text file in UTF-8, their ends as they are. Raises DataError(E-DATA-FORMAT) with the line."""
    for number, raw in enumerate(packed.lines(path), 1):
        with foreign(DataError, "E-DATA-FORMAT", f"{name}:{number}", "save it as UTF-8 CSV."):
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        yield from io.StringIO(text, newline="")


def _next(reader: Any, name: str) -> list[str] | None:
    """The next row of a csv reader, None at the end. Raises DataError(E-DATA-FORMAT) with the lines of the row."""
    first = reader.line_num + 1
    try:
        row: list[str] | None = next(reader, None)
    except csv.Error as e:
        last = reader.line_num
        lines = f"{name}:{first}" if last <= first else f"{name}:{first}-{last}"
        row_of = f'{lines}: in the row that begins in line {first}, a field opens with "'
        if "unexpected end of data" in str(e):
            raise DataError("E-DATA-FORMAT", f"{row_of} and never closes.", _QUOTES) from None
        if "expected after" in str(e):
            raise DataError("E-DATA-FORMAT", f"{row_of}, closes in line {last} and goes on.", _QUOTES) from None
        raise DataError("E-DATA-FORMAT", f"{lines}: {reason(e)}.", "write one row a line, and quote others.") from None
    return row


# Parquet --------------------------------------------------------------------------------------------------------------


def parquet_rows(section: DataSection, path: Path, name: str) -> Rows:
    """Rows of a Parquet file. Raises DataError: E-DATA-FORMAT with the row, E-DATA-COLUMN."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
    wanted = columns(section)
    broken = foreign(DataError, "E-DATA-FORMAT", f"{name}: not a readable Parquet file", "write it again.")
    at = 0
    with path.open("rb") as f:
        with broken:
            table = parquet.ParquetFile(f)
            names = table.schema_arrow.names
        _once(names, wanted, f"{name}: the schema")
        need_columns(section, names, name)
        with broken:
            batches = table.iter_batches(batch_size=1024, columns=wanted)
        while True:
            with broken:
                batch = next(batches, None)
            if batch is None:
                return
            values = [_values(section, c, batch.column(c), name, at) for c in wanted]
            for number, row in enumerate(zip(*values, strict=True), at + 1):
                yield f"{name} row {number}", dict(zip(wanted, row, strict=True))
            at += batch.num_rows


def _values(section: DataSection, column: str, array: Any, name: str, first: int) -> list[Any]:
    """A column of a batch as Python values: bytes decoded, times exact (``times.stamp``), other times as text."""
    from pyarrow import types

    kind = array.type
    is_time = types.is_temporal(kind)
    if is_time and column == section.time:
        if section.time_format:
            what = f"{name}: `{column}` holds times already ({kind})."
            raise DataError("E-DATA-FORMAT", what, "leave out data.time_format.")
        return _stamps(array, column, name)
    if is_time and not types.is_date(kind):
        why = f"{name}: `{column}` ({kind}) cannot be written as text"
        with foreign(DataError, "E-DATA-FORMAT", why, "write it as text, or name another column."):
            array = array.cast("string")
        odd = (v is not None and v.startswith("<value out of range") for v in array.to_pylist())
        if (at := next((i for i, is_odd in enumerate(odd) if is_odd), None)) is not None:
            what = f"{name} row {first + at + 1}: `{column}` ({kind}) is no time of a calendar."
            raise DataError("E-DATA-FORMAT", what, "correct it, or drop the row.")
    try:
        values = array.to_pylist()
    except Exception:  # boundary: whatever pyarrow raises about a value is said with its row
        values = [_value(array, i, column, f"{name} row {first + i + 1}") for i in range(len(array))]
    return [
        _decoded(v, column, f"{name} row {first + i + 1}") if isinstance(v, bytes | bytearray) else v
        for i, v in enumerate(values)
    ]


def _value(array: Any, i: int, column: str, where: str) -> Any:
    try:
        return array[i].as_py()
    except Exception as e:  # boundary: as above
        what = f"{where}: `{column}` ({array.type}) cannot be read: {reason(e)}."
        raise DataError("E-DATA-FORMAT", what, "correct it, or drop the row.") from None


def _decoded(raw: bytes, column: str, where: str) -> str:
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError as e:
        what = f"{where}: `{column}` holds bytes that are not UTF-8 text: {e.reason} at byte {e.start}."
        raise DataError("E-DATA-FORMAT", what, "write the column as text.") from None


def _stamps(array: Any, column: str, name: str) -> list[str | None]:
    """Times of any unit and year as ``times.stamp``; lengths of time and times of day as numbers of seconds."""
    from pyarrow import types

    kind = array.type
    per_s = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}.get(getattr(kind, "unit", ""), 0)
    if types.is_date(kind):
        per_s = 0 if types.is_date32(kind) else 10**3
    elif not per_s:
        raise DataError("E-DATA-FORMAT", f"{name}: `{column}` ({kind}) has no order.", "write dates or numbers.")
    zone = getattr(kind, "tz", None) is not None
    whole = array.cast("int32" if types.is_date32(kind) or types.is_time32(kind) else "int64").to_pylist()
    counts = [None if v is None else Decimal(v) * 86400 if not per_s else Decimal(v) / per_s for v in whole]
    if types.is_duration(kind) or types.is_time(kind):
        return [None if v is None else format(v, "f") for v in counts]
    return [None if v is None else stamp(format(v, "f"), zone) for v in counts]
