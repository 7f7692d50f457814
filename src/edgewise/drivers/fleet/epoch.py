"""The epoch of a server: a restore from a backup begins a new one.

A server knows nothing of requests that were taken after its backup was made, so it would take them a second time.
It takes none that was signed before its epoch began.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.core.errors import StoreError

EPOCH = "epoch.json"


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``number``: of restores so far. ``began_s``: when the last one was. ``backup_s``: how old its backup is."""

    number: int
    began_s: float
    backup_s: float


def load(folder: Path) -> Epoch:
    """The epoch of a server's folder; number 0 where it was never restored. Raises StoreError(E-CHECKPOINT)."""
    path = folder / EPOCH
    try:
        return msgspec.json.decode(path.read_bytes(), type=Epoch)
    except FileNotFoundError:
        return Epoch(0, 0.0, 0.0)
    except (OSError, msgspec.DecodeError) as e:
        raise StoreError("E-CHECKPOINT", f"{path} cannot be read: {e}.", "restore the folder from a backup.") from None
