"""A temporary file for the output of libraries, with a limited size however long the run is.

    with PrintedNoise() as noise:
        os.dup2(noise.fileno(), 2)

The beginning and the end stay in the file. The first message usually names the cause, and the last one the outcome.
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
    """A file without a name, and a thread that checks its size once a second. Use as a context manager.

    Where the disk has no room for the file, all output is dropped.

    Args:
        limit_bytes: the largest size. The middle of a larger file is left out. Between two checks the file may be
            larger.
        interval_s: seconds between two checks.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES, interval_s: float = INTERVAL_S) -> None:
        self._limit_bytes, self._interval_s = limit_bytes, interval_s
        self._left_out_bytes, self._end, self._trims = 0, threading.Event(), threading.Lock()
        self._file: BinaryIO = open(os.devnull, "w+b")  # noqa: SIM115 (closed by ``__exit__``)
        with suppress(OSError):
            file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (the same)
            self._file.close()
            self._file = file
        self._bounded = _make_writers_append(self._file.fileno())
        self._watch = threading.Thread(target=self._trim_regularly, name="noise", daemon=True)

    def __enter__(self) -> PrintedNoise:
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._watch.join()
        self._file.close()

    def fileno(self) -> int:
        """The file descriptor, for ``os.dup2``. Child processes may write to it too."""
        return self._file.fileno()

    def read(self) -> bytes:
        """Return the stored output."""
        self._trim_output()
        with suppress(OSError):
            return os.pread(self.fileno(), self._limit_bytes, 0)
        return b""

    def _trim_regularly(self) -> None:
        """Trim the file again and again, until its end."""
        while not self._end.wait(self._interval_s):
            self._trim_output()

    def _trim_output(self) -> None:
        """Leave out the middle of a file that is too large. Output written in the meantime may be left out too."""
        fd, half = self.fileno(), self._limit_bytes // 2
        with self._trims, suppress(OSError):
            size = os.fstat(fd).st_size
            if not self._bounded or size <= self._limit_bytes:
                return
            tail = os.pread(fd, half // 2, size - half // 2)
            self._left_out_bytes += size - half - len(tail)
            os.ftruncate(fd, half)
            os.write(fd, f"\n[... {self._left_out_bytes} bytes are left out here ...]\n".encode() + tail)


def _make_writers_append(fd: int) -> bool:
    """Make all writers append, so that a truncated file continues at its end. Return whether the system can do that."""
    if os.name == "nt":
        return False
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return True
