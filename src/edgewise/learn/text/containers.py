"""Recognise containers (PDF, Word, archives, pictures) by their first bytes. They are never read as text."""

from __future__ import annotations

from pathlib import Path

from edgewise.core.errors import DataError
from edgewise.learn.text import packed

HEAD_BYTES = 1024
_AS_TEXT = "save it as plain text in UTF-8, or move it elsewhere."
_UNPACK = "unpack it, or move it elsewhere."
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"%PDF-", "a PDF", "extract its text (pdftotext), or move it elsewhere."),
    (b"{\\rtf", "a Rich Text file", _AS_TEXT),
    (b"PK\x03\x04", "a Zip archive, as .docx, .xlsx, .odt and .epub files are", f"of a document, {_AS_TEXT}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office", _AS_TEXT),
    (b"%!PS-", "PostScript", "extract its text (ps2ascii), or move it elsewhere."),
    (b"PAR1\x15", "a Parquet table", 'write source = "parquet", or move it elsewhere.'),
    (b"SQLite format 3\0", "an SQLite database", 'export a table as CSV and write source = "csv".'),
    (b"\x1f\x8b", "packed with gzip", "give it the ending .gz, and it is unpacked."),
    (b"BZh91AY&SY", "packed with bzip2", "give it the ending .bz2, and it is unpacked."),
    (b"\xfd7zXZ\0", "packed with xz", "give it the ending .xz, and it is unpacked."),
    (b"\x28\xb5\x2f\xfd", "packed with Zstandard", "give it the ending .zst, and it is unpacked."),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    *((start, "UTF-16", "save it in UTF-8.") for start in (b"\xff\xfe", b"\xfe\xff")),
    *((start, "a picture", "move it elsewhere.") for start in (b"\x89PNG", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")),
    *((start, "a sound file", "move it elsewhere.") for start in (b"OggS\0", b"fLaC\0", b"ID3\x03", b"ID3\x04")),
    *((start, "a program", "move it elsewhere.") for start in (b"\x7fELF", b"MZ\x90\0")),
)


def refuse_container(name: str, raw: bytes) -> None:
    """Refuse the bytes of a known container, given a file's beginning or all of it. Raises DataError(E-DATA-FORMAT).

    A UTF-8 byte-order mark and white space may come before a container's first bytes.
    """
    start = raw[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    for magic, kind, fix in _KINDS:
        if start.startswith(magic):
            raise DataError("E-DATA-FORMAT", f"{name}: {kind}, not text.", fix)


def refuse_container_file(path: Path, name: str) -> None:
    """Refuse a file by its unpacked beginning. Raises as ``refuse_container`` and ``packed.text_chunks``, and
    OSError."""
    refuse_container(name, next(packed.text_chunks(path), b""))


def refuse_text(name: str, raw: bytes, first: bool) -> None:
    """Refuse bytes with NUL bytes, and a container if ``raw`` is the ``first`` part of its file.

    Bad UTF-8 is not refused.

    Raises:
        DataError: E-DATA-FORMAT.
    """
    if first:
        refuse_container(name, raw)
    if b"\0" in raw:
        raise DataError("E-DATA-FORMAT", f"{name}: not text (it has NUL bytes).", "keep only text in UTF-8 there.")
