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
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgewise.core import vector
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import TEMPORARY, discard, sync_folder, write_durably

PIECE = 2**20  # bytes compared at a time
_LENGTH = 64  # characters of a digest
_DIGEST = re.compile(rf"[0-9a-f]{{{_LENGTH}}}")


class Blobs:
    """The content-addressed files of one folder.

    ``grace_s``: sweeps leave files that were put within this time. Other processes may be about to name them.
    """

    def __init__(self, folder: Path, grace_s: float = 0.0) -> None:
        self._folder, self._grace_s = folder, grace_s
        self._held = Counter[str]()  # digests of the blobs that are kept from sweeps
        self._lock, self._sweeping = threading.Lock(), threading.Lock()

    def put(self, raw: vector.Buffer) -> str:
        """Store bytes and return their digest.

        A stored file whose bytes have changed is written again. Call ``sync`` before anything durable names the digest.
        """
        return self._put_blob(raw, vector.digest(raw))

    def _put_blob(self, raw: vector.Buffer, digest: str) -> str:
        """Write a blob durably, unless it is there."""
        path = self._folder / digest
        if not _file_holds(path, raw):
            write_durably(path, raw, owner_only=True)
        elif self._grace_s:
            os.utime(path)
        return digest

    @contextmanager
    def kept(self) -> Iterator[Callable[[vector.Buffer], str]]:
        """Give a ``put`` whose blobs no sweep of another thread removes before the block ends.

        Name the blobs durably within the block. Sweeps that begin later find their names.
        """
        held: list[str] = []

        def put(raw: vector.Buffer) -> str:
            digest = vector.digest(raw)
            with self._lock:
                self._held[digest] += 1
            held.append(digest)
            return self._put_blob(raw, digest)

        try:
            yield put
        finally:
            # A sweep that is under way may have asked for the names before these blobs had theirs.
            with self._sweeping, self._lock:
                self._held = +(self._held - Counter(held))

    @contextmanager
    def held(self, digest: str) -> Iterator[Path]:
        """Give the file of a blob, which no sweep removes before the block ends. It need not exist."""
        with self._lock:
            self._held[digest] += 1
        try:
            yield self.path(digest)
        finally:
            with self._lock:
                self._held = +(self._held - Counter([digest]))

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

    def sweep(self, named: Callable[[], Collection[str]]) -> None:
        """Remove all blobs that nothing names, and the partial blobs of killed processes. Other files stay.

        Args:
            named: returns the digests that are named now.
        """
        with self._sweeping:
            listed = set(os.listdir(self._folder))  # before the names: what is put and named after this, stays
            found = named()
            # Each round ends with a sweep, and a long run stores thousands of totals. So named files cost no call.
            for name in listed.difference(found):
                whole = _DIGEST.fullmatch(name)
                if not (whole or TEMPORARY.fullmatch(name)):
                    continue
                with self._lock:  # a ``put`` looks for the file after it has taken hold of the digest
                    if (name if whole else name[1 : 1 + _LENGTH]) not in self._held and self._is_old(name):
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
