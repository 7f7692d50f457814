"""Staged blobs of people who submit runs. Pieces are appended, and complete blobs wait for their run.

    GET /v1/staged/SHA256                      {"received": N}
    PUT /v1/staged/SHA256?offset=N&size=S      a piece; {"received": N + its bytes}

A blob that no run names within a day is removed when the server starts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgewise.core.digests import is_digest
from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, is_blob

MOST_BYTES = 2**36  # the largest size of all staged blobs together
KEPT_S = 86400.0


class Staging:
    """The staged blobs in ``folder``. A complete blob is the file ``DIGEST``, an incomplete one ``DIGEST.part``."""

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        self._folder, self._lock = folder, threading.Lock()
        folder.mkdir(FOLDER, exist_ok=True)
        for path in folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < now_s() - KEPT_S:
                    discard(path)

    def received(self, digest: str) -> int:
        """Return the number of a blob's bytes that are here.

        Raises:
            TransportError: E-REQUEST for text that is no digest.
        """
        complete, part = self._paths(digest)
        return next((path.stat().st_size for path in (complete, part) if path.exists()), 0)

    def put(self, digest: str, offset: int, size: int, piece: bytes) -> int:
        """Append a piece, and return the number of bytes that are here now.

        Raises:
            TransportError: E-OFFSET where the piece does not begin at the end of the blob's bytes here. E-QUOTA. E-BLOB
                where all bytes are here and have another digest.
            StoreError: E-DISK.
        """
        complete, part = self._paths(digest)
        with self._lock:
            here = self.received(digest)
            if offset != here or complete.exists() or not piece or offset + len(piece) > size:
                what = f"the piece begins at byte {offset}, but the server has {here} of {size} bytes."
                raise TransportError("E-OFFSET", what, "ask how much it has, and continue from there.")
            if self._taken() + len(piece) > MOST_BYTES:
                raise TransportError(
                    "E-QUOTA",
                    "the server's room for blobs that wait for their run is used up.",
                    "submit the run of staged blobs, or wait a day.",
                )
            try:
                with open(part, "ab", opener=for_owner) as f:
                    f.write(piece)
            except OSError as e:
                raise StoreError("E-DISK", f"{part}: {e.strerror}.", "free some space on the server.") from None
            if offset + len(piece) == size:
                if not is_blob(part, digest):
                    discard(part)
                    raise TransportError("E-BLOB", f"the bytes are not those of {digest:.12}.", "send it again.")
                part.replace(complete)
        return offset + len(piece)

    def take(self, digest: str) -> bytes:
        """Return a complete blob.

        Raises:
            TransportError: E-BLOB where it is not here, or is damaged and must be sent again.
        """
        complete, _ = self._paths(digest)
        try:
            raw = complete.read_bytes()
        except OSError:
            raise TransportError("E-BLOB", f"blob {digest:.12} was not sent.", "send it, and submit again.") from None
        if hashlib.sha256(raw).hexdigest() != digest:  # its bytes were not forced to the disk when it came
            discard(complete)
            raise TransportError("E-BLOB", f"blob {digest:.12} is damaged here.", "send it, and submit again.")
        return raw

    def drop(self, digest: str) -> None:
        """Remove a blob that is not needed here any more."""
        discard(self._paths(digest)[0])

    def _taken(self) -> int:
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def _paths(self, digest: str) -> tuple[Path, Path]:
        if not is_digest(digest):
            raise TransportError(
                "E-REQUEST", "the path does not hold a SHA-256 digest.", "write 64 hexadecimal digits."
            )
        return self._folder / digest, self._folder / f"{digest}.part"
