"""Files that several processes may write at once: the last complete one wins, and nobody ever sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from edgewise.core.errors import StoreError


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], sync: bool = True) -> None:
    """Write to a temporary file beside ``path``, then rename. Equal contents written twice are harmless.

    Whoever finds the file may trust that it is whole: its bytes are on the disk before it has its name. What a killed
    process leaves half-written is removed when the run directory is opened next (``drivers.storage.opening``).

    Args:
        write: is given the file. sync: False for many small files whose readers notice a damaged one.
    Raises:
        StoreError: E-DISK where the folder cannot be written. Whatever ``write`` raises; nothing is left behind then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as e:
        raise StoreError("E-DISK", f"{path.parent}: {e}.", "free space, or choose another folder.") from None
    try:
        with os.fdopen(handle, "wb") as f:
            write(f)
            if sync:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        with suppress(OSError):
            os.unlink(temporary)
        raise StoreError("E-DISK", f"{path}: {e}.", "free space, or choose another folder.") from None
    except BaseException:  # boundary: clean up after anything, also Ctrl-C, and pass it on
        with suppress(OSError):
            os.unlink(temporary)
        raise
