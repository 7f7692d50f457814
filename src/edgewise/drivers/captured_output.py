"""A file without a name for what libraries print, which does not outgrow its limit however long the run is.

    with Noise() as noise:
        os.dup2(noise.fileno(), 2)

The beginning and the end are kept, since the first complaint tells the cause and the last one how it went.
"""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import suppress
from typing import BinaryIO, cast

LIMIT_BYTES = 8 * 2**20
INTERVAL_S = 1.0


class PrintedNoise:
    """The file, and a thread that looks at its size once a second. Use as a context manager.

    Where the disk has no room for it, what is printed is dropped.

    Args:
        limit_bytes: where the file is larger, its middle is left out. Between two looks it can be.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, interval_s: float = INTERVAL_S) -> None:
        self._limit_bytes, self._interval_s = limit_bytes, interval_s
        self._left_out_bytes, self._end, self._trims = 0, threading.Event(), threading.Lock()
        self._file: BinaryIO = open(os.devnull, "w+b")  # noqa: SIM115 (closed by ``__exit__``)
        with suppress(OSError):
            file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the same)
            self._file.close()
            self._file = file
        self._bounded = _appends(self._file.fileno())
        self._watch = threading.Thread(target=self._watches, name="noise", daemon=True)

    def __enter__(self) -> PrintedNoise:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._watch.join()
        self._file.close()

    def fileno(self) -> int:
        """For ``os.dup2``; also child processes may write to it."""
        return self._file.fileno()

    def read(self) -> bytes:
        """All that is kept."""
        self._trim()
        with suppress(OSError):
            return os.pread(self.fileno(), self._limit_bytes, 0)
        return b""

    def _watches(self) -> None:
        while not self._end.wait(self._interval_s):
            self._trim()

    def _trim(self) -> None:
        """Leave out the middle of a file that is too large; what is written meanwhile may be left out too."""
        fd, half = self.fileno(), self._limit_bytes // 2
        with self._trims, suppress(OSError):
            size = os.fstat(fd).st_size
            if not self._bounded or size <= self._limit_bytes:
                return
            tail = os.pread(fd, half // 2, size - half // 2)
            self._left_out_bytes += size - half - len(tail)
            os.ftruncate(fd, half)
            os.write(fd, f"\n[... {self._left_out_bytes} bytes are left out here ...]\n".encode() + tail)


def _appends(fd: int) -> bool:
    """Make all writers append, so that a truncated file goes on at its end; whether that is possible here."""
    if os.name == "nt":
        return False
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return True
