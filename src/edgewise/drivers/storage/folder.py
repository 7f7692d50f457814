"""Ownership marks of folders. Runs and audits write and delete files only in folders that edgewise made.

    OUT/edgewise.json   the marker, written into a new or empty folder before anything else

A folder with other files and no marker belongs to somebody else. It is refused before anything in it is touched. A run
directory of a version without markers is recognised by files that nothing else writes: a database, and a witness of the
form that runs leave. It gets its marker when it is next opened for writing.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgewise.core.errors import StoreError

MARKER = "edgewise.json"
_SAYS = b'{"made_by": "edgewise", "note": "edgewise writes, replaces and deletes files in this folder"}\n'
_SQLITE = b"SQLite format 3\0"


def is_marked_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds edgewise's marker."""
    return (folder / MARKER).is_file()


def made(folder: Path) -> bool:
    """Return whether edgewise made ``folder``: it holds the marker, or a run of a version that wrote no markers."""
    return is_marked_folder(folder) or _run_without_marker(folder)


def is_foreign_folder(folder: Path) -> bool:
    """Return whether ``folder`` holds files and edgewise did not make it."""
    return folder.is_dir() and any(folder.iterdir()) and not made(folder)


def claim(folder: Path) -> None:
    """Make a folder, or take an empty one, and mark it. A folder that edgewise made is taken as it is.

    Raises:
        StoreError: E-FOLDER where the folder holds files and edgewise did not make it. Nothing is touched then. E-DISK
            where it cannot be made, read or written.
    """
    try:
        if is_foreign_folder(folder):
            raise StoreError(
                "E-FOLDER",
                f"{folder.resolve()} holds files, and edgewise did not make it. edgewise writes, replaces and deletes "
                "files only in folders that it made.",
                "name a new or an empty folder with --out.",
            )
        folder.mkdir(parents=True, exist_ok=True)
        _mark_folder(folder)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot create {folder}: {e.strerror}.", "choose another --out.") from None


def _mark_folder(folder: Path) -> None:
    """Write the marker where there is none. Only its name counts, so an incomplete file marks the folder as well."""
    if is_marked_folder(folder):
        return
    handle = os.open(folder / MARKER, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(handle, _SAYS)
    finally:
        os.close(handle)


def _run_without_marker(folder: Path) -> bool:
    import msgspec

    from edgewise.drivers.storage.witness import NAME, Witness

    try:
        with open(folder / "run.db", "rb") as f:
            if f.read(len(_SQLITE)) != _SQLITE:
                return False
        return len(msgspec.json.decode((folder / NAME).read_bytes(), type=Witness).instance) == 32
    except (OSError, msgspec.DecodeError, ValueError):
        return False
