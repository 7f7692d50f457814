"""A cache of blobs that a gateway has fetched, by digest, in a folder of limited size. The least recently used goes
first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from edgewise.core.digests import is_digest
from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import FOLDER, discard, for_owner, is_blob


class BlobCache:
    """The cache in ``folder``.

    Args:
        limit_bytes: the size of all complete blobs. A part that is being fetched comes on top.
    Guarantees: the bytes of a file from ``path`` had the digest when they came, or at its first use by this process. A
    blob's bytes are not forced to the disk when it comes, so after a power cut a file can hold other bytes. Safe to use
    from several threads.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self.limit_bytes, self._lock = folder, limit_bytes, threading.RLock()
        folder.mkdir(FOLDER, parents=True, exist_ok=True)
        found = [path for path in folder.iterdir() if is_digest(path.name)]
        found.sort(key=lambda path: path.stat().st_mtime)
        self._sizes = OrderedDict((path.name, path.stat().st_size) for path in found)
        self._unseen = set(self._sizes)  # blobs of an earlier process, which are not checked yet
        for path in folder.glob("*.part"):
            discard(path)
        self._make_room(0)

    @property
    def size_bytes(self) -> int:
        """Bytes of all complete blobs."""
        with self._lock:
            return sum(self._sizes.values())

    def path(self, digest: str) -> Path | None:
        """Return the file of a cached blob. None where there is none."""
        with self._lock:
            path = self._folder / digest
            if digest not in self._sizes:
                return None
            if not path.exists() or (digest in self._unseen and not is_blob(path, digest)):
                del self._sizes[digest]  # a missing or damaged blob is fetched again
                self._unseen.discard(digest)
                discard(path)
                return None
            self._unseen.discard(digest)
            self._sizes.move_to_end(digest)
            return path

    def part(self, digest: str) -> Path:
        """Return the file for a blob's bytes while it is fetched."""
        return self._folder / f"{digest}.part"

    def append(self, digest: str, piece: bytes, first: bool) -> None:
        """Add bytes to the part of a blob; ``first`` begins it again.

        Raises:
            StoreError: E-DISK.
        """
        part = self.part(digest)
        try:
            with open(part, "wb" if first else "ab", opener=for_owner) as f:
                f.write(piece)
        except OSError as e:
            discard(part)
            raise StoreError("E-DISK", f"{part}: {e.strerror}.", "free some space on the gateway.") from None

    def keep(self, digest: str) -> Path:
        """Turn a blob's complete part into a blob.

        Raises:
            TransportError: E-BLOB where the part has other bytes. They are deleted then.
        """
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
