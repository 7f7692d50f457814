"""Find the documents of tables (jsonl, csv, parquet). One row is one document.

CSV and Parquet files are converted once, row by row, into JSON lines with the needed columns in the cache folder.
Compressed JSON lines are unpacked there. So one reader serves all formats, any row is one seek away, and no table is
ever held in memory. Several files, and the files of a folder, are one table.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.training import POOLED
from edgewise.learn.text import containers, messages, packed
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.text.documents import DocumentIndex
from edgewise.learn.text.files import OTHER, DataListing, kind_of_data_path, printable_file_name
from edgewise.learn.text.rows import csv_rows, data_columns, need_data_columns, parquet_rows
from edgewise.learn.text.times import RowTimes
from edgewise.plan.recipe.recipe import DataSection

BOM = b"\xef\xbb\xbf"
ENDINGS = {
    "jsonl": (".jsonl", ".ndjson", ".jl", ".json"),
    "csv": (".csv", ".tsv", ".tab", ".txt"),
    "parquet": (".parquet", ".pq", ".parq"),
}
BLANK, EMPTY = "blank lines", "rows with empty text"
FORMAT = 2  # It is part of the cache key. Raise it when the rows of the same table change.
_decoder = msgspec.json.Decoder(dict[str, Any])


def find_table_documents(
    section: DataSection, paths: list[Path], cache_dir: Path, listing: DataListing
) -> DocumentIndex:
    """Find the documents of a table, in the order of the time column, or else of the files.

    Raises:
        DataError: as ``sources.find_documents``.
        OSError: for a file that cannot be read.
    """
    files = _table_files(section, paths, listing)
    root = Path(*_common_folder([p.parent for p in files]))
    names = [printable_file_name(p.relative_to(root).as_posix()) for p in files]
    index = _Index(section)
    plain = []
    for path, name in zip(files, names, strict=True):
        lines = section.source == "jsonl"
        if section.source != "parquet":
            containers.refuse_container_file(path, name)
        plain.append(packed.unpacked_text(path, cache_dir) if lines else _as_jsonl(section, path, name, cache_dir))
        index.file(plain[-1], name, lines)
    if not index.some_text:
        what = f"{names[0] if len(names) == 1 else f'{len(names)} files'} in {root}: no row with text."
        raise DataError("E-DATA-EMPTY", what, "give a table with at least one.")
    return index.found(plain, names, listing)


def _common_folder(folders: list[Path]) -> list[str]:
    """Find the folder that all folders are in."""
    first = [*folders[0].parts]
    for folder in folders[1:]:
        same = [a == b for a, b in zip(first, folder.parts, strict=False)]
        first = first[: same.index(False) if False in same else len(same)]
    return first


def _table_files(section: DataSection, paths: list[Path], listing: DataListing) -> list[Path]:
    """List the named files, and those in named folders with an ending of the format, at any depth."""
    files = []
    for path in paths:
        kind = kind_of_data_path(path)
        if kind == "special":
            raise DataError("E-DATA-MISSING", f"{path} is neither a file nor a folder.", "check data.path.")
        if kind != "folder":
            files.append(path)
            continue
        other: Counter[str] = Counter()
        for file in listing.below(path):
            plain = file.with_suffix("") if packed.is_compressed_text(file) else file
            if plain.suffix.lower() in ENDINGS[section.source]:
                files.append(file)
            else:
                other[plain.suffix.lower() or "none"] += 1
        listing.left_out[OTHER] += sum(other.values())
        if not files:
            what = f"{path} has no file that ends in {', '.join(ENDINGS[section.source])}"
            endings = f"; endings there: {', '.join(e for e, _ in other.most_common(5))}" if other else ""
            raise DataError("E-DATA-MISSING", f"{what}{endings}.", "check data.source and data.path.")
    return files


class _Index:
    """The places, owners, labels and times of rows, collected file after file."""

    def __init__(self, section: DataSection) -> None:
        self._section = section
        self._file: list[int] = []
        self._start: list[int] = []
        self._stop: list[int] = []
        self._owner, self._label = _Codes(), _Codes()
        self._times = RowTimes(section.time, section.time_format)
        self._left_out: Counter[str] = Counter()
        self._table_files = 0
        self.some_text = False

    def file(self, file: Path, name: str, lines: bool) -> None:
        section, new = self._section, True
        for at, stop, where, raw in _scan_rows(file, name, lines):
            if raw is None:
                self._left_out[BLANK] += 1
                continue
            row = lifted_columns(section, decode_table_row(raw, where))
            if new:
                need_data_columns(section, row, where)
                new = False
            _, learnt = check_row_text(section, row, where)
            self._left_out[EMPTY] += not learnt
            self.some_text |= bool(learnt.strip())
            self._owner.add(_owner_name(row, section.owner, where) if section.owner else "all")
            if section.label:
                self._label.add(_owner_name(row, section.label, where))
            if section.time:
                self._times.add(_row_value(row, section.time, where), where)
            self._file.append(self._table_files)
            self._start.append(at)
            self._stop.append(stop)
        self._table_files += 1

    def found(self, files: list[Path], names: list[str], listing: DataListing) -> DocumentIndex:
        section, m = self._section, len(self._file)
        owners, owner = self._owner.sorted()
        order = self._times.order() if section.time else np.arange(m)
        return DocumentIndex(
            files=tuple(files),
            names=tuple(names),
            file=np.array(self._file, np.int32)[order],
            start=np.array(self._start, np.int64)[order],
            stop=np.array(self._stop, np.int64)[order],
            owners=owners,
            owner=owner[order],
            label=self._label.sorted()[1][order] if section.label else None,
            rows=True,
            ends=np.ones(m, bool),
            left_out=listing.left_out,
            rows_left_out=self._left_out,
            window=self._times.windows(section.window_start, section.window)[order] if section.stream else None,
        )


class _Codes:
    """A coding of strings as small integers, in one pass."""

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


def _scan_rows(file: Path, name: str, lines: bool) -> Iterator[tuple[int, int, str, bytes | None]]:
    """Iterate over (start, stop, "file:line" for messages, bytes) of each row. A blank line has None for bytes."""
    at = 0
    with file.open("rb") as f:
        for number, raw in enumerate(f, 1):
            start, at = at, at + len(raw)
            where = f"{name}:{number}" if lines else f"{name} row {number}"
            if number == 1 and raw.startswith(BOM):
                start, raw = len(BOM), raw[len(BOM) :]
            yield start, at, where, raw if raw.strip() else None


def decode_table_row(raw: bytes, where: str) -> dict[str, Any]:
    """Decode one row. Raises DataError(E-DATA-FORMAT) where it is not a JSON object in UTF-8.

    NaN and Infinity are not JSON, but Python writes them. They count as missing, so that only a row whose needed value
    is one of them is refused.
    """
    fix = "one JSON object per line."
    if raw.strip() in (b"[", b"{") or raw.lstrip().startswith(b"["):
        fix = "write one JSON object per line: jq -c '.[]' makes that of a list of them, jq -c . of objects."
    with foreign(DataError, "E-DATA-FORMAT", f"{where}: not a JSON object", fix):
        try:
            return _decoder.decode(raw)
        except msgspec.DecodeError:
            if not any(word in raw for word in (b"NaN", b"Infinity")):
                raise
            plain = json.loads(raw.decode("utf-8"), parse_constant=lambda _: None)
            return _decoder.decode(msgspec.json.encode(plain))


def lifted_columns(section: DataSection, row: dict[str, Any]) -> dict[str, Any]:
    """Add the nested values that the recipe names by a path to a row of JSON lines.

    ``meta.shop`` is ``row["meta"]["shop"]`` where no column has that very name. A path that leads nowhere adds nothing.
    """
    for _, name in section.columns:
        if "." in name and name not in row:
            value: Any = row
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                row = {**row, name: value}
    return row


def _row_value(row: dict[str, Any], name: str, where: str) -> Any:
    """Read a value of a row. Raises DataError where it is missing."""
    value = row.get(name)
    if value is None:
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is missing or null.", "fill it, or drop the row.")
    return value


def column_text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a column's text. Raises DataError(E-DATA-FORMAT) where it is not text."""
    value = _row_value(row, name, where)
    if isinstance(value, str):
        return value
    kind, fix = type(value).__name__, "convert it."
    if isinstance(value, list) and any(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value):
        kind = "the messages of a chat"
        fix = f"write messages = {name!r} in place of text, or the answer into data.text and the rest into data.prompt."
    raise DataError("E-DATA-FORMAT", f"{where}: `{name}` is {kind}, needs text.", fix)


def check_row_text(section: DataSection, row: dict[str, Any], where: str) -> tuple[str, str]:
    """Return prompt and text of a row, or those of ``messages.pack_chat`` for a chat. Raises
    DataError(E-DATA-FORMAT)."""
    if section.chats:
        found = [m for name in section.chats for m in messages.chat_messages(_row_value(row, name, where), name, where)]
        tools = messages.chat_tools(row.get(section.tools), section.tools, where) if section.tools else None
        return messages.pack_chat(found, tools, section.answers == "last")
    prompts = [column_text(row, name, where) for name in section.prompts]
    prompt, answer = "\n\n".join(filter(None, prompts)), column_text(row, section.text, where)
    if section.as_chat:
        asked = {"role": "user", "content": prompt}
        return messages.pack_chat([asked, {"role": "assistant", "content": answer}])
    return prompt, answer


def _owner_name(row: dict[str, Any], name: str, where: str) -> str:
    """Read the owner of a row. Raises DataError for a value that names nobody."""
    value = _row_value(row, name, where)
    if not isinstance(value, str | int) or value in ("", POOLED):
        raise DataError("E-DATA-FORMAT", f"{where}: `{name}` = {value!r:.40} cannot name anything.", "use text or ids.")
    return str(value)


def _as_jsonl(section: DataSection, path: Path, name: str, cache_dir: Path) -> Path:
    """Convert a CSV or Parquet file to JSON lines in the cache, and return their path.

    Each row is checked here, where its line is known. A blank line stays one.
    """
    names_read = data_columns(section)
    keys = section.model_dump(
        include={
            "source",
            "text",
            "prompt",
            "messages",
            "tools",
            "owner",
            "time",
            "time_format",
            "separator",
            "header",
            "label",
        }
    )
    key = hashlib.sha256(
        json.dumps(["table", FORMAT, keys, packed.text_file_digest(path), path.suffix]).encode()
    ).hexdigest()
    target = cache_dir / "tables" / f"{key[:32]}.jsonl"
    if target.is_file():
        return target
    if section.source == "csv":
        rows = csv_rows(section, path, name)
    else:
        rows = parquet_rows(section, packed.unpacked_text(path, cache_dir), name)
    times = RowTimes(section.time, section.time_format)

    def lines() -> Iterator[bytes]:
        for where, row in rows:
            if row is None:
                yield b"\n"
                continue
            with foreign(DataError, "E-DATA-FORMAT", where, "convert it to text or numbers."):
                plain = msgspec.json.encode({c: row[c] for c in names_read})
            read = decode_table_row(plain, where)
            check_row_text(section, read, where)
            for names in (section.owner, section.label):
                if names:
                    _owner_name(read, names, where)
            if section.time:
                times.add(_row_value(read, section.time, where), where)
            yield plain + b"\n"

    write_atomically(target, lambda f: f.writelines(lines()))
    return target
