"""Boxes for frames that wait for their round, sealed under the round's key, which is destroyed when the round closes.

    box = 16 random bytes + AES-256-GCM under HKDF(round key, those bytes, label)

Each box has its own key, so the same place can be written twice. Once the round's key is gone from the database
(``secure_delete``), nobody can open a copy of a box on a disk or in a backup of the folder.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.crypto import seal
from edgewise.crypto.agree import hkdf_derive
from edgewise.drivers.storage.files import FOLDER, sync_folder, write_durably

_SALT_BYTES = 16
OVERHEAD_BYTES = _SALT_BYTES + seal.OVERHEAD_BYTES


def new_key() -> bytes:
    """Draw a round's key: 32 bytes of the operating system's randomness."""
    return secrets.token_bytes(32)


def close_box(key: bytes, plain: bytes | memoryview, label: str) -> bytes:
    """Seal ``plain`` under a round's key for the place that ``label`` names."""
    salt = secrets.token_bytes(_SALT_BYTES)
    return salt + seal.seal(hkdf_derive(key, salt, b"edgewise/spool/v1 " + label.encode()), plain, label.encode())


def open_box(key: bytes, box: bytes, label: str) -> bytes:
    """Open a sealed box of the spool that ``close_box`` made.

    Raises:
        DecodeError: E-SEAL for another key or label, and for changed bytes.
    """
    salt, sealed = box[:_SALT_BYTES], memoryview(box)[_SALT_BYTES:]
    return seal.open_sealed(hkdf_derive(key, salt, b"edgewise/spool/v1 " + label.encode()), sealed, label.encode())


def _open_into(key: bytes, box: memoryview, label: str, out: memoryview) -> None:
    """Open a box of ``close_box`` into ``out``. Raises DecodeError(E-SEAL) as ``open_box``."""
    derived = hkdf_derive(key, bytes(box[:_SALT_BYTES]), b"edgewise/spool/v1 " + label.encode())
    seal.open_sealed_into(derived, box[_SALT_BYTES:], label.encode(), out)


class Chunks:
    """The sealed chunks of unfinished and unused uploads: ``folder/UPLOAD/NUMBER``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, key: bytes, upload: str, number: int, plain: bytes) -> None:
        """Write a chunk durably.

        Raises:
            StoreError: E-DISK.
        """
        folder = self._folder / upload
        try:
            folder.mkdir(FOLDER, parents=True, exist_ok=True)
        except OSError as e:
            raise StoreError("E-DISK", f"cannot create {folder}: {e.strerror}.", "free some space.") from None
        write_durably(folder / f"{number:06d}", close_box(key, plain, f"{upload}/{number}"), owner_only=True)
        sync_folder(folder)

    def get(self, key: bytes, upload: str, number: int) -> bytes:
        """Read a chunk.

        Raises:
            StoreError: E-CHECKPOINT where it is missing.
            DecodeError: E-SEAL.
        """
        path = self._folder / upload / f"{number:06d}"
        try:
            box = path.read_bytes()
        except OSError as e:
            raise StoreError("E-CHECKPOINT", f"{path} cannot be read: {e.strerror}.", "restore the folder.") from None
        return open_box(key, box, f"{upload}/{number}")

    def whole(self, key: bytes, upload: str, count: int) -> memoryview:
        """Join all chunks. Memory holds the result and one box. Raises as ``get``."""
        paths = [self._folder / upload / f"{number:06d}" for number in range(count)]
        try:
            sizes = [path.stat().st_size for path in paths]
            plain = memoryview(bytearray(max(0, sum(sizes) - count * OVERHEAD_BYTES)))
            box = memoryview(bytearray(max(sizes, default=0)))
            at = 0
            for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
                with open(path, "rb", buffering=0) as f:
                    read = f.readinto(box[:size])
                end = at + max(0, size - OVERHEAD_BYTES)
                _open_into(key, box[: read or 0], f"{upload}/{number}", plain[at:end])
                at = end
        except OSError as e:
            what = f"{self._folder / upload} cannot be read: {e.strerror}."
            raise StoreError("E-CHECKPOINT", what, "restore the folder.") from None
        return plain.toreadonly()

    def drop(self, upload: str) -> None:
        """Remove an upload's chunks. Where the disk refuses, they stay, but nothing can open them."""
        shutil.rmtree(self._folder / upload, ignore_errors=True)

    def uploads(self) -> list[str]:
        """List the uploads that have chunks here."""
        return sorted(p.name for p in self._folder.iterdir()) if self._folder.exists() else []
