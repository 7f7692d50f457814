"""The file in which a server saves a run's beacon or its progress towards one (``engine.beacon_server``)."""

from __future__ import annotations

from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import write_durably


class BeaconFile:
    """Store a server's beacon in one file (port ``engine.ports.Shelf``). Only its owner can read the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """See Shelf.

        Raises:
            StoreError: E-DISK.
        """
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StoreError(
                "E-DISK", f"cannot read {self._path}: {e.strerror}.", "check the disk and the permissions of the file."
            ) from None

    def save(self, raw: bytes) -> None:
        """See Shelf.

        Raises:
            StoreError: E-DISK.
        """
        write_durably(self._path, raw, owner_only=True)
