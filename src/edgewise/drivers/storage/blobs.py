"""Content-addressed files. Each file is named by the SHA-256 of its bytes.

    blobs = Blobs(out / "blobs")
    digest = blobs.put(raw)
    blobs.sync()
    assert blobs.get(digest) == raw

A killed process leaves at most a temporary file beside them. Where several threads put and sweep, put within ``kept``:

    with blobs.kept() as put:
        digest = put(raw)
        ...                                # name the digest durably
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from edgewise.core import vector
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.blob_store import Holds
from edgewise.drivers.storage.files import TEMPORARY, discard, sync_folder, write_durably

REPAIR = "restore it from a backup, or start the run again in another folder."
PIECE = 2**20  # bytes compared at a time
_LENGTH = 64  # characters of a digest
_DIGEST = re.compile(rf"[0-9a-f]{{{_LENGTH}}}")


class Blobs:
    """The content-addressed files of one folder: a ``BlobStore``.

    ``grace_s``: sweeps leave files that were put within this time. Other processes may be about to name them.
    """

    piece_bytes = 2**18

    def __init__(self, folder: Path, grace_s: float = 0.0) -> None:
        self._folder, self._grace_s = folder, grace_s
        self._holds = Holds()

    def put(self, raw: vector.Buffer) -> str:
        """See BlobStore."""
        return self._put_blob(raw, vector.digest(raw))

    def _put_blob(self, raw: vector.Buffer, digest: str) -> str:
        """Write a blob durably, unless it is there."""
        path = self._folder / digest
        if not _file_holds(path, raw):
            write_durably(path, raw, owner_only=True)
        elif self._grace_s:
            os.utime(path)
        return digest

    def kept(self) -> AbstractContextManager[Callable[[vector.Buffer], str]]:
        """See BlobStore."""
        return self._holds.kept(self._put_blob)

    def held(self, digest: str) -> AbstractContextManager[None]:
        """See BlobStore."""
        return self._holds.held(digest)

    def sync(self) -> None:
        """See BlobStore."""
        sync_folder(self._folder)

    def get(self, digest: str) -> bytes:
        """See BlobStore."""
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

    def size(self, digest: str) -> int | None:
        """See BlobStore."""
        try:
            return self.path(digest).stat().st_size
        except OSError:
            return None

    def read(self, digest: str, start: int, stop: int) -> bytes:
        """See BlobStore."""
        path = self.path(digest)
        try:
            with open(path, "rb") as f:
                f.seek(start)
                raw = f.read(stop - start)
        except OSError as e:
            raise StoreError("E-CHECKPOINT", f"cannot read {path}: {e.strerror}.", REPAIR) from None
        if len(raw) != stop - start:
            raise StoreError("E-CHECKPOINT", f"{path} ends before byte {stop}.", REPAIR)
        return raw

    def path(self, digest: str) -> Path:
        """Return the file of a stored blob, for a caller that looks for the file itself."""
        return self._folder / digest

    def fault(self) -> str | None:
        """See BlobStore."""
        return None if self._folder.is_dir() else f"{self._folder} is gone."

    def sweep(self, named: Callable[[], Collection[str]]) -> None:
        """See BlobStore. It also removes the partial blobs of killed processes. Other files stay."""
        with self._holds.sweeping() as removal:
            listed = set(os.listdir(self._folder))  # before the names: what is put and named after this, stays
            found = named()
            # Each round ends with a sweep, and a long run stores thousands of totals. So named files cost no call.
            for name in listed.difference(found):
                whole = _DIGEST.fullmatch(name)
                if not (whole or TEMPORARY.fullmatch(name)):
                    continue
                with removal(name if whole else name[1 : 1 + _LENGTH]) as free:  # a ``put`` takes hold before it looks
                    if free and self._is_old(name):
                        discard(self._folder / name)

    def _is_old(self, name: str) -> bool:
        """Return whether a file was put before the time of grace."""
        if not self._grace_s:
            return True
        try:
            return time.time() - (self._folder / name).stat().st_mtime > self._grace_s
        except OSError:
            return False


def _file_holds(path: Path, raw: vector.Buffer) -> bool:
    """Compare a file with ``raw`` piece by piece, so that memory holds no second copy."""
    try:
        with open(path, "rb") as f:
            return os.fstat(f.fileno()).st_size == len(raw) and all(
                f.read(PIECE) == raw[at : at + PIECE] for at in range(0, len(raw), PIECE)
            )
    except OSError:  # an absent file is written; an unreadable one is written again
        return False
