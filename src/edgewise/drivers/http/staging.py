"""Blobs on their way to the server from whoever submits a run: pieces are appended, and whole blobs wait for the run.

    GET /v1/staged/SHA256                      {"received": N}
    PUT /v1/staged/SHA256?offset=N&size=S      a piece; {"received": N + its bytes}

A blob that no run names within a day is removed when the server starts.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, is_blob

MOST_BYTES = 2**36  # of all that waits here
KEPT_S = 86400.0
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Staging:
    """The staged blobs in ``folder``; a file is ``DIGEST`` when it is whole, ``DIGEST.part`` before."""

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        self._folder, self._lock = folder, threading.Lock()
        folder.mkdir(FOLDER, exist_ok=True)
        for path in folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < now_s() - KEPT_S:
                    discard(path)

    def received(self, digest: str) -> int:
        """Bytes of a blob that are here. Raises TransportError(E-REQUEST) for what is no digest."""
        whole, part = self._paths(digest)
        return next((path.stat().st_size for path in (whole, part) if path.exists()), 0)

    def put(self, digest: str, offset: int, size: int, piece: bytes) -> int:
        """Append a piece; returns what is here now.

        Raises TransportError: E-OFFSET where it does not begin where the blob here ends; E-QUOTA; E-BLOB where all
        bytes are here and are not those of the digest; StoreError(E-DISK).
        """
        whole, part = self._paths(digest)
        with self._lock:
            here = self.received(digest)
            if offset != here or whole.exists() or not piece or offset + len(piece) > size:
                what = f"a piece for byte {offset}; the server has {here} of {size} bytes."
                raise TransportError("E-OFFSET", what, "ask how much it has, and go on from there.")
            if self._taken() + len(piece) > MOST_BYTES:
                raise TransportError("E-QUOTA", "too much waits to be submitted.", "submit it, or wait a day.")
            try:
                with open(part, "ab", opener=for_owner) as f:
                    f.write(piece)
            except OSError as e:
                raise StoreError("E-DISK", f"{part}: {e.strerror}.", "free some space on the server.") from None
            if offset + len(piece) == size:
                if not is_blob(part, digest):
                    discard(part)
                    raise TransportError("E-BLOB", f"the bytes are not those of {digest:.12}.", "send it again.")
                part.replace(whole)
        return offset + len(piece)

    def take(self, digest: str) -> bytes:
        """A whole blob. Raises TransportError(E-BLOB) where it is not here, or damaged and has to be sent again."""
        whole, _ = self._paths(digest)
        try:
            raw = whole.read_bytes()
        except OSError:
            raise TransportError("E-BLOB", f"blob {digest:.12} was not sent.", "send it, and submit again.") from None
        if hashlib.sha256(raw).hexdigest() != digest:  # nobody waited for the disk when it came
            discard(whole)
            raise TransportError("E-BLOB", f"blob {digest:.12} is damaged here.", "send it, and submit again.")
        return raw

    def drop(self, digest: str) -> None:
        """A blob is not needed here any more."""
        discard(self._paths(digest)[0])

    def _taken(self) -> int:
        return sum(path.stat().st_size for path in self._folder.iterdir())

    def _paths(self, digest: str) -> tuple[Path, Path]:
        if not _DIGEST.fullmatch(digest):
            raise TransportError("E-REQUEST", "this is no SHA-256 digest.", "write 64 hexadecimal digits.")
        return self._folder / digest, self._folder / f"{digest}.part"
