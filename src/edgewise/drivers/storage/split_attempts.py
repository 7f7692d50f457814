"""Number of a device's last connection in a session of split learning, in a file of the run's folder.

A device that was killed begins its session anew, with a higher number than before, because the server ignores all
messages of earlier connections (``engine.split``).
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.core.errors import StoreError
from edgewise.drivers.storage.files import sync_folder, write_durably

FILE = "split-attempt.json"


class _Attempt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    round: int
    attempt: int


class SplitAttempts:
    """The number in the folder of a run, for the one process that works there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self, round: int) -> int:
        """Return the number of the last connection in a round. 0: there was none. Raises StoreError(E-CHECKPOINT)."""
        found = self._read()
        return found.attempt if found is not None and found.round == round else 0

    def begun(self, round: int) -> bool:
        """Tell whether a session of this round, or of a later one, has begun. Raises StoreError(E-CHECKPOINT)."""
        found = self._read()
        return found is not None and found.round >= round

    def _read(self) -> _Attempt | None:
        path = self._folder / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Attempt)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as e:
            what = f"{path} cannot be read: {e}."
            raise StoreError("E-CHECKPOINT", what, "remove it after the round that is open now.") from None

    def save(self, round: int, attempt: int) -> None:
        """Make a number durable. Raises StoreError(E-DISK)."""
        write_durably(self._folder / FILE, msgspec.json.encode(_Attempt(round, attempt)), owner_only=True)
        sync_folder(self._folder)
