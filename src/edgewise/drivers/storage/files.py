"""Files that survive a crash: durable writes, files for their owner only, and locks that end with their process."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from edgewise.core.errors import StoreError
from edgewise.core.vector import Buffer

TEMPORARY = re.compile(r"\..+\.\d+\.tmp")  # a file that ``write_durably`` has not finished
COPIED_BYTES = 2**20  # bytes of a copied file that are in memory at a time
FOLDER = 0o700  # the mode of a folder that only its owner may use


def for_owner(path: str, flags: int) -> int:
    """Open a file. Only its owner can read and write a file that this creates.

    Pass it to ``open`` as ``opener``.
    """
    return os.open(path, flags, 0o600)


def write_durably(path: Path, raw: Buffer, owner_only: bool = False) -> None:
    """Write a file so that after a crash it is either complete or as it was before.

    The bytes are on the disk when this returns. All processes see the new name. The name survives a power cut once
    ``sync_folder`` was called.

    Args:
        owner_only: create the file for its owner only (``for_owner``); otherwise by the umask.
    Raises:
        StoreError: E-DISK.
    """
    _replace_file(path, lambda f: f.write(raw), owner_only, durable=True)


def copy_durably(source: Path, path: Path) -> None:
    """Copy a file piece by piece, for its owner only. Of the copy the same holds as of ``write_durably``.

    Raises:
        StoreError: E-DISK.
    """

    def copied(f: BinaryIO) -> None:
        with open(source, "rb") as original:
            shutil.copyfileobj(original, f, COPIED_BYTES)

    _replace_file(path, copied, owner_only=True, durable=True)


def replace_file(path: Path, raw: Buffer) -> None:
    """Replace a file for its owner only, atomically for all processes.

    The file survives the end of this process but not a power cut.

    Raises:
        StoreError: E-DISK.
    """
    _replace_file(path, lambda f: f.write(raw), owner_only=True, durable=False)


def _temporary_path(path: Path) -> Path:
    """Return the name of an unfinished file, which this thread alone writes."""
    return path.with_name(f".{path.name}.{os.getpid()}{threading.get_native_id()}.tmp")


def _replace_file(path: Path, fill: Callable[[BinaryIO], object], owner_only: bool, durable: bool) -> None:
    """Write a file next to the old one, and put it in its place. ``fill`` writes its bytes."""
    temporary = _temporary_path(path)
    try:
        with open(temporary, "wb", opener=for_owner if owner_only else None) as f:
            fill(f)
            if durable:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        discard(temporary)
        raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "free some space, then --resume.") from None


def write_first(path: Path, raw: Buffer) -> None:
    """Write a file for its owner only, durably, where there is none: complete or not at all, whatever happens.

    Where two processes do, one of them has written the file, and the other one gets the error.

    Raises:
        OSError: FileExistsError where the file exists, which is left as it is; others of the disk.
    """
    temporary = _temporary_path(path)
    try:
        with open(temporary, "wb", opener=for_owner) as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        _name_first(temporary, path)
    finally:
        discard(temporary)
    sync_folder(path.parent)


def _name_first(temporary: Path, path: Path) -> None:
    """Give a file its name, unless there is one of that name. Raises OSError."""
    if os.name == "nt":
        os.rename(temporary, path)  # which replaces no file there
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as a memory card's, holds the folder of one process alone
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(temporary, path)


def write_new(path: Path, raw: Buffer) -> None:
    """Write a file that does not exist yet.

    Raises:
        StoreError: E-FILE-EXISTS where the file exists, which is left as it is; E-DISK.
    """
    try:
        with open(path, "xb") as f:
            f.write(raw)
    except FileExistsError:
        raise StoreError("E-FILE-EXISTS", f"{path} exists already.", "name another file.") from None
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "choose another place.") from None


def is_blob(path: Path, digest: str) -> bool:
    """Return whether a file exists and its bytes have this digest (SHA-256, hexadecimal)."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest() == digest
    except OSError:
        return False


def discard(path: Path) -> None:
    """Delete a file that nothing names any more. Where the disk refuses, the file stays and only takes space."""
    with suppress(OSError):
        path.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut.

    Raises:
        StoreError: E-DISK.
    """
    if os.name == "nt":  # Windows cannot open folders, and NTFS journals names by itself
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot write {folder}: {e.strerror}.", "free some space, then --resume.") from None


def lock(path: Path, fix: str = "wait for it, or choose another --out.", shared: bool = False) -> Callable[[], None]:
    """Take a folder's advisory lock and return the function that releases it.

    Args:
        shared: other processes may take it too, if they also share it.
        fix: the advice in the error where another process has the lock.
    Raises:
        StoreError: E-RUN-EXISTS if another process holds the lock, E-DISK where the file cannot be opened.
    """
    try:
        handle = open(path, "a+b")  # noqa: SIM115 (held as long as the store)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot open {path}: {e.strerror}.", "choose another folder.") from None
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StoreError("E-RUN-EXISTS", f"another process is working in {path.parent}.", fix) from None
    return handle.close
