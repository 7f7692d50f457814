"""Tables (jsonl, csv, parquet): one row is one document.

CSV and Parquet are turned once, row by row, into a JSON-lines file with the needed columns in the cache folder. So
there is one reader, any row is a seek away, and no table is ever held in memory.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.engine.ports import POOLED
from edgewise.learn.cache import write_atomically
from edgewise.learn.sources import Found
from edgewise.plan.recipe import DataSection

BOM = b"\xef\xbb\xbf"
_decoder = msgspec.json.Decoder(dict[str, Any])


def find(section: DataSection, path: Path, cache_dir: Path) -> Found:
    """Documents of a table, in the order of the time column, else of the file. Raises DataError as ``sources.find``."""
    if not path.is_file():
        raise DataError("E-DATA-MISSING", f"{path} is not a file.", "data.path names one file for tables.")
    file = path if section.source == "jsonl" else _as_jsonl(section, path, cache_dir)
    starts: list[int] = []
    stops: list[int] = []
    owner, label = _Codes(), _Codes()
    times: list[Any] = []
    some_text = False
    for at, stop, where, row in _scan(file, path, section.source == "jsonl"):
        if not starts:
            _need_columns(section, row, where)
        some_text |= bool(text(row, section.text, where).strip())
        if section.prompt:
            text(row, section.prompt, where)
        owner.add(_name(row, section.owner, where) if section.owner else "all")
        if section.label:
            label.add(_name(row, section.label, where))
        if section.time:
            times.append(_value(row, section.time, where))
        starts.append(at)
        stops.append(stop)
    if not some_text:
        raise DataError("E-DATA-EMPTY", f"{path} has no row with text.", "give a table with at least one.")
    owners, owner_code = owner.sorted()
    order = np.argsort(_ranks(times, path, section.time)) if times else np.arange(len(starts))
    return Found(
        files=(file,),
        names=(path.name,),
        file=np.zeros(len(starts), np.int32),
        start=np.array(starts, np.int64)[order],
        stop=np.array(stops, np.int64)[order],
        owners=owners,
        owner=owner_code[order],
        label=label.sorted()[1][order] if section.label else None,
        rows=True,
    )


class _Codes:
    """Strings to small integers, in one pass."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}
        self._codes: list[int] = []

    def add(self, name: str) -> None:
        self._codes.append(self._code.setdefault(name, len(self._code)))

    def sorted(self) -> tuple[tuple[str, ...], np.ndarray]:
        names = sorted(self._code)
        rank = np.empty(len(names), np.int32)
        rank[[self._code[n] for n in names]] = np.arange(len(names))
        return tuple(names), rank[self._codes]


def _scan(file: Path, source: Path, lines: bool) -> Iterator[tuple[int, int, str, dict[str, Any]]]:
    """(start, stop, "file:line" for messages, row) of each row that is not blank."""
    at = 0
    with file.open("rb") as f:
        for number, raw in enumerate(f, 1):
            start, at = at, at + len(raw)
            where = f"{source.name}:{number}" if lines else f"{source.name} row {number}"
            if number == 1 and raw.startswith(BOM):
                start, raw = len(BOM), raw[len(BOM) :]
            if raw.strip():
                yield start, at, where, decode(raw, where)


def decode(raw: bytes, where: str) -> dict[str, Any]:
    """One row; E-DATA-FORMAT where it is not a JSON object in UTF-8."""
    with foreign(DataError, "E-DATA-FORMAT", f"{where}: not a JSON object", "one JSON object per line."):
        return _decoder.decode(raw)


def _need_columns(section: DataSection, row: Iterable[str], where: str) -> None:
    known = list(row)
    for key in ("text", "prompt", "owner", "time", "label"):
        name = getattr(section, key)
        if name and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else f"columns: {', '.join(known)}."
            raise DataError("E-DATA-COLUMN", f"{where}: data.{key} = `{name}` is not a column.", hint)


def _value(row: dict[str, Any], name: str, where: str) -> Any:
    value = row.get(name)
    if value is None:
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is missing or null.", "fill it, or drop the row.")
    return value


def text(row: dict[str, Any], name: str, where: str) -> str:
    """A column's text; E-DATA-FORMAT where there is none."""
    value = _value(row, name, where)
    if not isinstance(value, str):
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is {type(value).__name__}, needs text.", "convert it.")
    return value


def _name(row: dict[str, Any], name: str, where: str) -> str:
    value = _value(row, name, where)
    if not isinstance(value, str | int) or value in ("", POOLED):
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` = {value!r:.40} cannot name anything.", "use text or ids.")
    return str(value)


def _ranks(times: list[Any], path: Path, name: str) -> np.ndarray:
    """Order of the time column: all numbers, or all text (ISO dates sort as text). Ties keep file order."""
    number = [isinstance(t, int | float) for t in times]
    if any(number) and not all(number):
        odd = number.index(not number[0]) + 1
        what = f"{path.name} row {odd}: `{name}` mixes numbers and text."
        raise DataError("E-DATA-FORMAT", what, "write all times in one form.")
    keys = times if all(number) else [str(t) for t in times]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks


def _as_jsonl(section: DataSection, path: Path, cache_dir: Path) -> Path:
    columns = sorted({c for c in (section.text, section.prompt, section.owner, section.time, section.label) if c})
    with path.open("rb") as f:
        content = hashlib.file_digest(f, "sha256").hexdigest()
    key = hashlib.sha256(json.dumps(["table", section.source, columns, content]).encode()).hexdigest()[:32]
    target = cache_dir / "tables" / f"{key}.jsonl"
    if not target.is_file():
        rows = _csv_rows(section, path) if section.source == "csv" else _parquet_rows(section, path, columns)
        lines = (msgspec.json.encode({c: row[c] for c in columns}) + b"\n" for row in rows)
        write_atomically(target, lambda f: f.writelines(lines))
    return target


def _csv_rows(section: DataSection, path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(_lines(path), strict=True)
    header = _next(reader, path) or []
    if twice := sorted(name for name, n in Counter(header).items() if n > 1):
        what = f"{path.name}:1: the header names {', '.join(twice[:3])} more than once."
        raise DataError("E-DATA-FORMAT", what, "give every column a name of its own.")
    _need_columns(section, header, f"{path.name}:1")
    while (values := _next(reader, path)) is not None:
        if values and len(values) != len(header):
            what = f"{path.name}:{reader.line_num}: {len(values)} fields, the header has {len(header)}."
            raise DataError("E-DATA-FORMAT", what, "quote fields that contain commas.")
        if values:
            row: dict[str, Any] = dict(zip(header, values, strict=True))
            if section.time:
                row[section.time] = _number(row[section.time])
            yield row


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file in UTF-8, their ends as they are. Raises DataError(E-DATA-FORMAT) with the line."""
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            with foreign(DataError, "E-DATA-FORMAT", f"{path.name}:{number}", "save it as UTF-8 CSV."):
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            yield from io.StringIO(text, newline="")


def _next(reader: Any, path: Path) -> list[str] | None:
    """The next row of a csv reader, None at the end."""
    with foreign(DataError, "E-DATA-FORMAT", f"{path.name}:{reader.line_num + 1}", "save it as UTF-8 CSV."):
        row: list[str] | None = next(reader, None)
        return row


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _parquet_rows(section: DataSection, path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise EdgewiseError("E-DEPENDENCY", "parquet needs pyarrow.", "pip install pyarrow.") from None
    broken = foreign(DataError, "E-DATA-FORMAT", f"{path.name}: not a readable Parquet file", "write it again.")
    with path.open("rb") as f:
        with broken:
            table = parquet.ParquetFile(f)
            names = table.schema_arrow.names
        if twice := sorted(name for name, n in Counter(names).items() if n > 1 and name in columns):
            what = f"{path.name}: the schema names {', '.join(twice[:3])} more than once."
            raise DataError("E-DATA-FORMAT", what, "give every column a name of its own.")
        _need_columns(section, names, path.name)
        with broken:
            batches = table.iter_batches(batch_size=1024, columns=columns)
        while True:
            with broken:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            yield from rows
