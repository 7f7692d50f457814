"""Blobs that a gateway has fetched once, by digest, in a folder of limited size. The least recently used goes first."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from pathlib import Path

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, is_blob

_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobCache:
    """The cache in ``folder``. ``limit_bytes``: of all whole blobs; a part that is being fetched comes on top.

    Guarantees: ``path`` gives files whose bytes had the digest when they came, or at the first look since this process
        began: nobody waits for the disk when a blob comes, so a power cut can leave other bytes under its name. Safe to
        use from several threads.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self.limit_bytes, self._lock = folder, limit_bytes, threading.RLock()
        folder.mkdir(FOLDER, parents=True, exist_ok=True)
        found = [path for path in folder.iterdir() if _DIGEST.fullmatch(path.name)]
        found.sort(key=lambda path: path.stat().st_mtime)
        self._sizes = OrderedDict((path.name, path.stat().st_size) for path in found)
        self._unseen = set(self._sizes)  # from an earlier process
        for path in folder.glob("*.part"):
            discard(path)
        self._make_room(0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all whole blobs."""
        with self._lock:
            return sum(self._sizes.values())

    def path(self, digest: str) -> Path | None:
        """A blob that is here."""
        with self._lock:
            path = self._folder / digest
            if digest not in self._sizes:
                return None
            if not path.exists() or (digest in self._unseen and not is_blob(path, digest)):
                del self._sizes[digest]  # somebody emptied the folder, or the blob is damaged: it is fetched again
                self._unseen.discard(digest)
                discard(path)
                return None
            self._unseen.discard(digest)
            self._sizes.move_to_end(digest)
            return path

    def part(self, digest: str) -> Path:
        """Where the bytes of a blob go while it is fetched."""
        return self._folder / f"{digest}.part"

    def append(self, digest: str, piece: bytes, first: bool) -> None:
        """Add bytes to the part of a blob. ``first``: begin anew. Raises StoreError(E-DISK)."""
        part = self.part(digest)
        try:
            with open(part, "wb" if first else "ab", opener=for_owner) as f:
                f.write(piece)
        except OSError as e:
            discard(part)
            raise StoreError("E-DISK", f"{part}: {e.strerror}.", "free some space on the gateway.") from None

    def keep(self, digest: str) -> Path:
        """Make a blob of its part. Raises TransportError(E-BLOB) where it has other bytes, which are dropped then."""
        part, path = self.part(digest), self._folder / digest
        if not is_blob(part, digest):
            discard(part)
            raise TransportError("E-BLOB", f"the server sent other bytes than {digest}.", "try again.")
        size = part.stat().st_size
        with self._lock:
            self._make_room(size)
            part.replace(path)
            self._sizes[digest] = size
        return path

    def _make_room(self, size: int) -> None:
        while self._sizes and self.size_bytes + size > self.limit_bytes:
            old, _ = self._sizes.popitem(last=False)
            discard(self._folder / old)
