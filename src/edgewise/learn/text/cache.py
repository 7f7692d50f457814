"""Write files that several processes may write at once. The last complete one wins, and no reader sees half of one.

Arrays in such files are read as memory maps.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgewise.core.errors import StoreError
from edgewise.core.vector import Array


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], sync: bool = True) -> None:
    """Write to a temporary file beside ``path``, then rename it. Equal contents written twice are harmless.

    Guarantees:
        A file with this name is whole, because its bytes are on the disk before it has the name. A killed process may
        leave a temporary file, and the next opening of the run directory removes it (``drivers.storage.opening``).

    Args:
        write: writes the content to the file that it receives.
        sync: False for many small files whose readers notice a damaged one.
    Raises:
        StoreError: E-DISK where the folder cannot be written. Errors of ``write`` pass through, and no file remains.
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


def mapped_array(path: Path, dtype: type, width: int, axes: int) -> Array | None:
    """Map the array in a cache file. None where the file is missing or damaged, so that it is made again."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if (array.dtype, array.ndim, array.shape[-1:]) == (dtype, axes, (width,)) else None
