"""The index of a device's documents: passages, their words and their vectors, in one file.

    raw = build(read_documents(Path("notes")), embed, "bundled")
    index = read_index(raw)

The file is a magic word, the SHA-256 of the rest, and an SQLite database. The database is read into memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.safe_repr import outline
from edgewise.core.vector import Array
from edgewise.learn.retrieve.embed import Embedder
from edgewise.plan.recipe.retriever import Pool

MAGIC = b"EWINDEX2"
DIGEST_BYTES = 32
LONGEST = 600  # Characters of a passage.
TEXTS, ROWS = (".txt", ".md"), ".jsonl"
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
TABLES = """
    CREATE TABLE facts (model TEXT, pool TEXT, digest TEXT);
    CREATE TABLE passages (id INTEGER PRIMARY KEY, source TEXT, text TEXT, vector BLOB);
    CREATE VIRTUAL TABLE words USING fts5(text, content='passages', content_rowid='id');
"""


class IndexedText(NamedTuple):
    """A text, and where it is from: a file, or a file and its line."""

    source: str
    text: str


class Index(NamedTuple):
    """An index in memory.

    Attributes:
        tables: the database, with the tables ``passages`` and ``words``.
        model: the model that embedded the passages, as the owner named it.
        pool: of the embedder.
        digest: of the embedder.
        vectors_NH: float32[N, H], the passages' vectors. Row i is passage i + 1.
    """

    tables: sqlite3.Connection
    model: str
    pool: Pool
    digest: str
    vectors_NH: Array

    __repr__ = outline


def sentences(text: str) -> list[str]:
    """Split a text after ``.``, ``!``, ``?`` and at line ends. Spaces around sentences are dropped."""
    return [s for part in SENTENCE_END.split(text) if (s := part.strip())]


def passages(text: str, longest: int = LONGEST) -> list[str]:
    """Cut a text into passages of whole sentences, of at most ``longest`` characters.

    A sentence that is longer is cut where the passage is full.
    """
    made: list[str] = []
    for sentence in sentences(text):
        for at in range(0, len(sentence), longest):
            piece = sentence[at : at + longest]
            if made and len(made[-1]) + 1 + len(piece) <= longest:
                made[-1] += f" {piece}"
            else:
                made.append(piece)
    return made


def read_documents(place: Path, column: str = "text") -> list[IndexedText]:
    """Read ``.txt``, ``.md`` and ``.jsonl`` files: one, or all of a folder and the folders in it.

    A text file is one document. Each line of a ``.jsonl`` file is one, in the field ``column``.

    Raises:
        DataError: E-DATA-MISSING; E-DATA-FORMAT for a file of another kind, or one that is not UTF-8 or JSON;
            E-DATA-COLUMN; E-DATA-EMPTY where no document has text.
    """
    if not place.exists():
        raise DataError("E-DATA-MISSING", f"{place} does not exist.", "name a file or a folder of documents.")
    kinds = (*TEXTS, ROWS)
    if place.is_file() and place.suffix not in kinds:
        raise DataError("E-DATA-FORMAT", f"{place} is no {', '.join(kinds)} file.", "convert it to text.")
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file() and f.suffix in kinds)
    found = [one for file in files for one in _of_file(file, column) if one.text.strip()]
    if not found:
        what = f"{place} has no text to index: {len(files)} files of {', '.join(kinds)} were read."
        raise DataError("E-DATA-EMPTY", what, "name a folder with documents.")
    return found


def _of_file(file: Path, column: str) -> Iterator[IndexedText]:
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError("E-DATA-FORMAT", f"{file} cannot be read as UTF-8 text: {e}.", "convert it.") from None
    if file.suffix != ROWS:
        yield IndexedText(str(file), text)
        return
    for n, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError("E-DATA-FORMAT", f"{file}:{n} is not JSON: {e}.", "mend or remove the line.") from None
        if not isinstance(row, dict) or not isinstance(row.get(column), str):
            what = f"{file}:{n} has no text in the field {column!r:.60}."
            raise DataError("E-DATA-COLUMN", what, "name the field with --column.")
        yield IndexedText(f"{file}:{n}", row[column])


def build(documents: Sequence[IndexedText], embed: Embedder, model: str) -> bytes:
    """Make the index of documents.

    Args:
        model: the model's name, with which ``edgewise ask`` opens it again.
    Returns:
        The bytes of the file.
    """
    parts = [(d.source, text) for d in documents for text in passages(d.text)]
    vectors_NH = embed([text for _, text in parts])
    tables = sqlite3.connect(":memory:")
    try:
        tables.executescript(TABLES)
        tables.execute("INSERT INTO facts VALUES (?, ?, ?)", (model, embed.pool, embed.digest()))
        tables.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?)",
            ((i + 1, *part, vectors_NH[i].astype("<f4").tobytes()) for i, part in enumerate(parts)),
        )
        tables.execute("INSERT INTO words(words) VALUES ('rebuild')")
        tables.commit()
        raw = tables.serialize()
    finally:
        tables.close()
    return MAGIC + hashlib.sha256(raw).digest() + raw


def read_index(raw: bytes, name: str = "the index") -> Index:
    """Open the bytes of an index. The caller closes ``tables``.

    Raises:
        EdgewiseError: E-INDEX for bytes that are no index, or that changed since they were written.
    """
    start = len(MAGIC) + DIGEST_BYTES
    if not raw.startswith(MAGIC):
        raise EdgewiseError("E-INDEX", f"{name} is not an index of documents.", "name one that `edgewise index` wrote.")
    if hashlib.sha256(raw[start:]).digest() != raw[len(MAGIC) : start]:
        what = f"{name} is damaged: its bytes differ from its digest."
        raise EdgewiseError("E-INDEX", what, "write it again: `edgewise index`.")
    tables = sqlite3.connect(":memory:")
    tables.deserialize(raw[start:])
    model, pool, digest = tables.execute("SELECT model, pool, digest FROM facts").fetchone()
    vectors = [v for (v,) in tables.execute("SELECT vector FROM passages ORDER BY id")]
    vectors_NH = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)
    return Index(tables, model, pool, digest, vectors_NH)
