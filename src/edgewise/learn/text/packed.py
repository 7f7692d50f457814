"""The bytes of files, unpacked where their name says that they are compressed (.gz, .bz2, .xz, .zst)."""

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
from edgewise.learn.text.files import shown

CHUNK = 1 << 20


def _zst(path: Path) -> IO[bytes]:
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
    ".zst": _zst,
}


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in PACKED


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked. Raises DataError(E-DATA-FORMAT) for what cannot be unpacked, OSError."""
    if not is_packed(path):
        with path.open("rb") as f:
            while chunk := f.read(CHUNK):
                yield chunk
        return
    with path.open("rb"):  # what cannot be opened is an OSError, not a broken archive
        pass
    broken = foreign(DataError, "E-DATA-FORMAT", f"{shown(path.name)} cannot be unpacked", "pack it again.")
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
    """The lines of a file, unpacked, with their ends. Raises as ``chunks``."""
    rest = b""
    for chunk in chunks(path):
        *parts, rest = (rest + chunk).split(b"\n")
        yield from (part + b"\n" for part in parts)
    if rest:
        yield rest


def digest(path: Path) -> str:
    """SHA-256 of a file as it stands on disk."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def unpacked(path: Path, cache_dir: Path) -> Path:
    """The file itself or, of a compressed one, its unpacked copy in the cache folder. Raises as ``chunks``."""
    if not is_packed(path):
        return path
    target = cache_dir / "unpacked" / digest(path)
    if not target.is_file():
        write_atomically(target, lambda f: f.writelines(chunks(path)))
    return target
