"""The file of a blob that is being downloaded. What has come is kept for the next attempt."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import discard, is_blob

RESERVE_BYTES = 2**26  # disk space that downloads leave to this device's other work


@contextmanager
def _on_disk(part: Path) -> Iterator[None]:
    """Turn an error of the disk into StoreError(E-DISK), and give back what the part has taken of it."""
    try:
        yield
    except OSError as e:
        discard(part)
        raise StoreError("E-DISK", f"cannot write {part}: {e.strerror}.", "free some space.") from None


def begin(part: Path) -> int:
    """Make the folder of a part, and return the number of its bytes that are here. Raises StoreError(E-DISK)."""
    with _on_disk(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        return part.stat().st_size if part.exists() else 0


def append(part: Path, answer: httpx2.Response, have: int, limit_bytes: int) -> int:
    """Write an answer's body behind the first ``have`` bytes of a part, and return its size.

    Bytes are written as they come, because unwritten ones are lost with the connection.

    Raises:
        TransportError: E-BLOB where the blob has more than ``limit_bytes``. Nothing of it stays then.
        StoreError: E-DISK where the disk lacks room for it and ``RESERVE_BYTES``.
    """
    got, announced = 0, answer.headers.get("content-length", "0")
    with _on_disk(part):
        free = shutil.disk_usage(part.parent).free
        if announced.isascii() and announced.isdigit() and have + int(announced) > limit_bytes:
            raise _too_large(part, limit_bytes)
        with part.open("ab" if have else "wb") as f:
            for piece in answer.iter_raw():
                got += len(piece)
                if have + got > limit_bytes:
                    raise _too_large(part, limit_bytes)
                if got + RESERVE_BYTES > free:
                    f.close()
                    discard(part)
                    what = (
                        f"{part.parent} has too little room for the blob and {RESERVE_BYTES / 2**20:g} MiB beside it."
                    )
                    raise StoreError("E-DISK", what, "free some space.")
                f.write(piece)
    return got


def _too_large(part: Path, limit_bytes: int) -> TransportError:
    discard(part)
    return TransportError("E-BLOB", f"{part.stem} has more than {limit_bytes} bytes.", "leave the run.")


def finish(part: Path, path: Path, digest: str) -> None:
    """Give a whole partial blob its name.

    Raises:
        TransportError: E-BLOB for other bytes, which are deleted.
        StoreError: E-DISK.
    """
    if not is_blob(part, digest):
        discard(part)
        raise TransportError("E-BLOB", f"the server sent other bytes than {digest}.", "try again.")
    with _on_disk(part):
        part.replace(path)
