"""The file in which a server keeps the beacon of a run, or how far it is (``engine.beacon_server``)."""

from __future__ import annotations

from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import write_durably


class BeaconFile:
    """A port ``engine.ports.Shelf`` in one file, which is for its owner only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        """See Shelf. Raises StoreError(E-DISK)."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            raise StoreError("E-DISK", f"cannot read {self._path}: {e.strerror}.", "see to the disk.") from None

    def save(self, raw: bytes) -> None:
        """See Shelf. Raises StoreError(E-DISK)."""
        write_durably(self._path, raw, owner_only=True)
