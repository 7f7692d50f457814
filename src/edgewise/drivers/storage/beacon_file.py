"""The file in which a server saves a run's beacon or its progress towards one (``engine.beacon_server``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import write_durably


class BeaconFile:
    """Store a server's beacon in one file (port ``engine.ports.Shelf``). Only its owner can read the file.

    ``check``: called before each save. It raises where this process may not write any more.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self._path, self._check = path, check

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
            StoreError: E-DISK, and what the check raises.
        """
        self._check()
        write_durably(self._path, raw, owner_only=True)
