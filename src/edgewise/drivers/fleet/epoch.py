"""The epoch of a server. A restore from a backup begins a new epoch.

A restored server does not know the requests that were accepted after its backup was made, so it could accept them
twice. It accepts no request that was signed before its epoch began.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.core.errors import StoreError

EPOCH = "epoch.json"


class Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An epoch of a server.

    Attributes:
        number: number of restores so far.
        began_s: time of the last restore.
        backup_s: time of its backup.
    """

    number: int
    began_s: float
    backup_s: float


def load_server_epoch(folder: Path) -> Epoch:
    """Load the epoch of a server's folder; number 0 where it was never restored.

    Raises:
        StoreError: E-CHECKPOINT.
    """
    path = folder / EPOCH
    try:
        return msgspec.json.decode(path.read_bytes(), type=Epoch)
    except FileNotFoundError:
        return Epoch(0, 0.0, 0.0)
    except (OSError, msgspec.DecodeError) as e:
        raise StoreError("E-CHECKPOINT", f"{path} cannot be read: {e}.", "restore the folder from a backup.") from None
