"""Read the bytes of files, and unpack those whose name ends in .gz, .bz2, .xz or .zst."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from edgewise.core.errors import DataError, EdgewiseError
from edgewise.core.foreign import foreign
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.text.files import printable_file_name

CHUNK = 1 << 20


def _zst_stream(path: Path) -> IO[bytes]:
    """Open a file that is packed with Zstandard."""
    try:
        import pyarrow
    except ImportError:
        what = f"{path.name} is packed with Zstandard, which needs pyarrow."
        raise EdgewiseError("E-DEPENDENCY", what, "pip install pyarrow, or unpack it.") from None
    stream: IO[bytes] = pyarrow.CompressedInputStream(pyarrow.OSFile(os.fsencode(path)), "zstd")
    return stream


PACKED: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zst_stream,
}


def is_compressed_text(path: Path) -> bool:
    """Tell whether a file is compressed, by its name."""
    return path.suffix.lower() in PACKED


def text_chunks(path: Path) -> Iterator[bytes]:
    """Read the unpacked bytes of a file in chunks. Raises DataError(E-DATA-FORMAT) for a broken archive, OSError."""
    if not is_compressed_text(path):
        with path.open("rb") as f:
            while chunk := f.read(CHUNK):
                yield chunk
        return
    with path.open("rb"):  # A file that cannot be opened is an OSError, not a broken archive.
        pass
    broken = foreign(
        DataError, "E-DATA-FORMAT", f"{printable_file_name(path.name)} cannot be unpacked", "pack it again."
    )
    with broken:
        stream = PACKED[path.suffix.lower()](path)
    with stream:
        while True:
            with broken:
                chunk = stream.read(CHUNK)
            if not chunk:
                return
            yield chunk


def lines(path: Path) -> Iterator[bytes]:
    """Read the unpacked lines of a file with their line ends. Raises as ``text_chunks``."""
    rest = b""
    for chunk in text_chunks(path):
        *parts, rest = (rest + chunk).split(b"\n")
        yield from (part + b"\n" for part in parts)
    if rest:
        yield rest


def text_file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes on disk."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def unpacked_text(path: Path, cache_dir: Path) -> Path:
    """Return the file itself, or the unpacked copy of a compressed one in the cache folder. Raises as
    ``text_chunks``."""
    if not is_compressed_text(path):
        return path
    target = cache_dir / "unpacked" / text_file_digest(path)
    if not target.is_file():
        write_atomically(target, lambda f: f.writelines(text_chunks(path)))
    return target
