"""Read the recipe's columns from CSV and Parquet files, row by row, as text and numbers.

Each value keeps its meaning, or its row is refused. No value is rounded, cut or rewritten.
"""

from __future__ import annotations

import csv
import difflib
import io
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign, reason
from edgewise.learn.text import headers, packed
from edgewise.learn.text.times import utc_text
from edgewise.plan.recipe.recipe import DataSection

SEPARATORS = (",", ";", "\t", "|")
SAME_WIDTH = 50  # Without a header, a separator has to fit so many rows.
_QUOTES = 'a " that belongs to the text is written twice (""), and its field stands in quotes.'
Row = dict[str, Any]
Rows = Iterator[tuple[str, Row | None]]  # (place for messages, row or None for a blank line)


def data_columns(section: DataSection) -> list[str]:
    """Return the columns that a recipe names, sorted."""
    return sorted({name for _, name in section.columns})


def need_data_columns(section: DataSection, row: Iterable[str], where: str, header: bool = False) -> None:
    """Check that ``row`` has every column of the recipe.

    Args:
        header: True where ``row`` is the first line of a file, which may have no header.
    Raises:
        DataError: E-DATA-COLUMN where a column is missing.
    """
    known = list(row)
    for key, name in section.columns:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"columns: {', '.join(known) or 'none'}."
            if header and not near:
                hint += " If this is a row of data: " + headerless_keys(section, known)
            raise DataError("E-DATA-COLUMN", f"{where}: data.{key} = `{name}` is not a column.", hint)


def _refuse_repeated_names(names: Sequence[str], wanted: Sequence[str], where: str) -> None:
    """Raise DataError if a wanted column stands twice."""
    if twice := sorted(name for name, n in Counter(names).items() if n > 1 and name in wanted):
        what = f"{where} names {', '.join(twice[:3])} more than once."
        raise DataError("E-DATA-FORMAT", what, "give every column a name of its own.")


# CSV ------------------------------------------------------------------------------------------------------------------


def csv_rows(section: DataSection, path: Path, name: str) -> Rows:
    """Read the rows of a CSV file.

    The separator is ``data.separator``, or the one that ``separator`` finds. With ``data.header = false`` the first
    line is a row, and columns have numbers.

    Raises:
        DataError: E-DATA-FORMAT with the line, E-DATA-COLUMN, E-DATA-EMPTY. With ``data.header = "auto"`` E-DATA-FORMAT
            also for a header that seems to be a row of data.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    between = section.separator or separator(section, path, name)
    reader = csv.reader(_text_lines(path, name), strict=True, delimiter=between)
    first = _next_csv_row(reader, name) or []
    while first == [] and (again := _next_csv_row(reader, name)) is not None:  # Blank lines may come first.
        first = again
    if not first:
        raise DataError("E-DATA-EMPTY", f"{name} is empty: it has no header.", "give a table with one row or more.")
    at = f"{name}:{reader.line_num}"
    header, of = (first, "header") if section.header else (headers.numbered_columns(len(first)), "first row")
    _refuse_repeated_names(header, data_columns(section), f"{at}: the header")
    need_data_columns(section, header, at, header=True)
    seen = _Seen(section, header, at)
    if not section.header:
        yield at, dict(zip(header, first, strict=True))
    while (values := _next_csv_row(reader, name)) is not None:
        where = f"{name}:{reader.line_num}"
        if values and len(values) != len(header):
            what = f"{where}: {len(values)} fields, the {of} has {len(header)} (separated by {between!r})."
            raise DataError("E-DATA-FORMAT", what, f"quote fields that contain {between!r}, or set data.separator.")
        row = dict(zip(header, values, strict=True)) if values else None
        if section.header and values == header and len(header) > 1:
            raise DataError("E-DATA-FORMAT", f"{where}: the header stands here again.", "take this line out.")
        if row:
            seen.add(row, where)
        yield where, row
    seen.judge()


class _Seen:
    """A check of the first rows of a table: tell whether its header is a row of data."""

    def __init__(self, section: DataSection, header: Sequence[str], at: str) -> None:
        self._section, self._header, self._at = section, header, at
        self._rows: list[Row] = []
        self._open = section.header == "auto"

    def add(self, row: Row, where: str) -> None:
        """Add a row. Raises DataError(E-DATA-FORMAT) as soon as the header proves to be data."""
        owner = self._section.owner
        if self._section.header == "auto" and owner and row[owner] == owner:
            raise self._refused_header(f"{where}: {owner!r} is an owner here, and the name of the column in {self._at}")
        if self._open:
            self._rows.append(row)
            if len(self._rows) == headers.ROWS:
                self.judge()

    def judge(self) -> None:
        """Check the names of the recipe's columns. Raises DataError(E-DATA-FORMAT) for one that seems to be data."""
        rows, self._rows = self._rows, []
        for key, column in self._section.columns if self._open else ():
            if why := headers.header_is_data_reason(column, [row[column] for row in rows]):
                raise self._refused_header(f"{self._at}: `{column:.60}` names the column of data.{key} here, and {why}")
        self._open = False

    def _refused_header(self, what: str) -> DataError:
        """Make the error for a header that lacks a column."""
        what += ", so the first line seems to be a row of data and no header."
        return DataError("E-DATA-FORMAT", what, headerless_keys(self._section, self._header))


def headerless_keys(section: DataSection, header: Sequence[str]) -> str:
    """Return the keys to write for a table without a header: numbers in place of the names in its first row."""
    place = {name: f'"{number}"' for name, number in zip(header, headers.numbered_columns(len(header)), strict=True)}
    named: dict[str, list[str]] = {}
    for key, name in section.columns:
        named.setdefault(key, []).append(place.get(name, '"NUMBER"'))
    keys = (f"{key} = {found[0] if len(found) == 1 else '[' + ', '.join(found) + ']'}" for key, found in named.items())
    return f"write header = false and {', '.join(keys)} under [data]; or header = true, if it does name the columns."


def separator(section: DataSection, path: Path, name: str) -> str:
    """Find the separator of a CSV file among , ; tab and |.

    It is the first by which the header has all columns of the recipe, or else most fields. Without a header it is the
    one by which all of the first rows have equally many fields.

    Raises:
        DataError: E-DATA-FORMAT where several separators fit rows without a header.
    """
    wanted = set(data_columns(section))
    found = {between: _first_rows(path, name, between, 1 if section.header else SAME_WIDTH) for between in SEPARATORS}
    width = {between: len(rows[0]) if rows else 0 for between, (rows, _) in found.items()}
    if section.header:
        fits = [s for s, (rows, _) in found.items() if wanted and rows and wanted <= set(rows[0])]
    else:
        fits = [s for s, (rows, _) in found.items() if width[s] > 1 and {len(row) for row in rows} == {width[s]}]
        fits = [s for s in fits if not found[s][1]] or fits
        if len(fits) > 1:
            what = f"{name}: its rows can be separated by {' and by '.join(map(repr, fits))}."
            raise DataError(
                "E-DATA-FORMAT", what, "quote fields that contain one, or write data.separator in a recipe."
            )
    return fits[0] if fits else max(SEPARATORS, key=lambda s: (width[s], -SEPARATORS.index(s)))


def _first_rows(path: Path, name: str, between: str, n: int) -> tuple[list[list[str]], bool]:
    """Return the first ``n`` rows, and True where an unquoted field holds a quote.

    A quote in a quoted field is written twice, and two are around the field. There are no rows where ``between`` cannot
    separate them.
    """
    quotes = 0

    def lines() -> Iterator[str]:
        nonlocal quotes
        for line in _text_lines(path, name):
            if line.strip():
                quotes += line.count('"')
                yield line

    try:
        rows = list(islice(csv.reader(lines(), strict=True, delimiter=between), n))
    except csv.Error:
        return [], False
    return rows, quotes < sum(2 * field.count('"') + 2 for row in rows for field in row if '"' in field)


def _text_lines(path: Path, name: str) -> Iterator[str]:
    """Read the lines of a UTF-8 file with their line ends. Raises DataError(E-DATA-FORMAT) with the line."""
    for number, raw in enumerate(packed.lines(path), 1):
        with foreign(DataError, "E-DATA-FORMAT", f"{name}:{number}", "save it as UTF-8 CSV."):
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        yield from io.StringIO(text, newline="")


def _next_csv_row(reader: Any, name: str) -> list[str] | None:
    """Read the next row of a csv reader, or None at the end. Raises DataError(E-DATA-FORMAT) with its lines."""
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
    """Read the rows of a Parquet file. Raises DataError: E-DATA-FORMAT with the row, E-DATA-COLUMN."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
    wanted = data_columns(section)
    broken = foreign(DataError, "E-DATA-FORMAT", f"{name}: not a readable Parquet file", "write it again.")
    at = 0
    with path.open("rb") as f:
        with broken:
            table = parquet.ParquetFile(f)
            names = table.schema_arrow.names
        _refuse_repeated_names(names, wanted, f"{name}: the schema")
        need_data_columns(section, names, name)
        with broken:
            batches = table.iter_batches(batch_size=1024, columns=wanted)
        while True:
            with broken:
                batch = next(batches, None)
            if batch is None:
                return
            values = [_column_values(section, c, batch.column(c), name, at) for c in wanted]
            for number, row in enumerate(zip(*values, strict=True), at + 1):
                yield f"{name} row {number}", dict(zip(wanted, row, strict=True))
            at += batch.num_rows


def _column_values(section: DataSection, column: str, array: Any, name: str, first: int) -> list[Any]:
    """Convert a column of a batch to Python values.

    Bytes are decoded as UTF-8. Values of the recipe's time column stay exact (``times.utc_text``), and other times
    become text.
    """
    from pyarrow import types

    kind = array.type
    is_time = types.is_temporal(kind)
    if is_time and column == section.time:
        if section.time_format:
            what = f"{name}: `{column}` holds times already ({kind})."
            raise DataError("E-DATA-FORMAT", what, "leave out data.time_format.")
        return _time_stamps(array, column, name)
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
    except Exception:  # boundary: pyarrow may raise anything about a value, and the error has to name its row
        values = [_cell_value(array, i, column, f"{name} row {first + i + 1}") for i in range(len(array))]
    return [
        _decoded_text(v, column, f"{name} row {first + i + 1}") if isinstance(v, bytes | bytearray) else v
        for i, v in enumerate(values)
    ]


def _cell_value(array: Any, i: int, column: str, where: str) -> Any:
    """Read a cell. Raises DataError with its place."""
    try:
        return array[i].as_py()
    except Exception as e:  # boundary: as above
        what = f"{where}: `{column}` ({array.type}) cannot be read: {reason(e)}."
        raise DataError("E-DATA-FORMAT", what, "correct it, or drop the row.") from None


def _decoded_text(raw: bytes, column: str, where: str) -> str:
    """Decode bytes as UTF-8. Raises DataError with their place."""
    try:
        return bytes(raw).decode("utf-8")
    except UnicodeDecodeError as e:
        what = f"{where}: `{column}` holds bytes that are not UTF-8 text: {e.reason} at byte {e.start}."
        raise DataError("E-DATA-FORMAT", what, "write the column as text.") from None


def _time_stamps(array: Any, column: str, name: str) -> list[str | None]:
    """Convert times of any unit and year as ``times.utc_text``. Durations and times of day become seconds."""
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
    return [None if v is None else utc_text(format(v, "f"), zone) for v in counts]
