"""Content-addressed files: each is named by the SHA-256 of its bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from edgewise.core import vector
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import TEMPORARY, discard, sync_folder, write_durably

PIECE = 2**20  # bytes compared at a time
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The blobs of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, raw: vector.Buffer) -> str:
        """Store bytes; returns their digest. One that rotted since it was written is written anew. ``sync`` before
        anything durable names it."""
        digest = vector.digest(raw)
        path = self._folder / digest
        if not _holds(path, raw):
            write_durably(path, raw, owner_only=True)
        return digest

    def sync(self) -> None:
        """Make the names survive a power cut."""
        sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """Stored bytes. Raises StoreError(E-CHECKPOINT) where they are missing or not what was written."""
        path = self._folder / digest
        try:
            raw = path.read_bytes()
        except OSError as e:
            raise StoreError(
                "E-CHECKPOINT", f"cannot read {path}: {e.strerror}.", "start again with another --out."
            ) from None
        if vector.digest(raw) != digest:
            raise StoreError("E-CHECKPOINT", f"{path} is not what was written.", "start again with another --out.")
        return raw

    def path(self, digest: str) -> Path:
        """The file of a stored blob, for who sends it as it is."""
        return self._folder / digest

    def sweep(self, named: Collection[str]) -> None:
        """Remove all other blobs, and what a killed process left of one; other files stay."""
        for path in self._folder.iterdir():
            ours = _DIGEST.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)
            if ours and path.name not in named:
                discard(path)


def _holds(path: Path, raw: vector.Buffer) -> bool:
    """Compare a file with ``raw``, a piece at a time, so that memory holds no second copy."""
    try:
        with open(path, "rb") as f:
            return os.fstat(f.fileno()).st_size == len(raw) and all(
                f.read(PIECE) == raw[at : at + PIECE] for at in range(0, len(raw), PIECE)
            )
    except OSError:  # absent, or unreadable and so written anew
        return False
