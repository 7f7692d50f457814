"""Content-addressed files. Each file is named by the SHA-256 of its bytes.

    blobs = Blobs(out / "blobs")
    digest = blobs.put(raw)
    blobs.sync()
    assert blobs.get(digest) == raw

A killed process leaves at most a temporary file beside them.
"""

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
    """The content-addressed files of one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, raw: vector.Buffer) -> str:
        """Store bytes and return their digest.

        A stored file whose bytes have changed is written again. Call ``sync`` before anything durable names the digest.
        """
        digest = vector.digest(raw)
        path = self._folder / digest
        if not _holds(path, raw):
            write_durably(path, raw, owner_only=True)
        return digest

    def sync(self) -> None:
        """Make the names of all stored blobs survive a power cut."""
        sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """Return the bytes of a digest.

        Raises:
            StoreError: E-CHECKPOINT where the file is missing or its bytes are not those that were written.
        """
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
        """Return the file of a stored blob, for a caller that sends the file itself."""
        return self._folder / digest

    def sweep(self, named: Collection[str]) -> None:
        """Remove all blobs that are not ``named``, and the partial blobs of killed processes. Other files stay."""
        for path in self._folder.iterdir():
            ours = _DIGEST.fullmatch(path.name) or TEMPORARY.fullmatch(path.name)
            if ours and path.name not in named:
                discard(path)


def _holds(path: Path, raw: vector.Buffer) -> bool:
    """Compare a file with ``raw`` piece by piece, so that memory holds no second copy."""
    try:
        with open(path, "rb") as f:
            return os.fstat(f.fileno()).st_size == len(raw) and all(
                f.read(PIECE) == raw[at : at + PIECE] for at in range(0, len(raw), PIECE)
            )
    except OSError:  # an absent file is written; an unreadable one is written again
        return False
